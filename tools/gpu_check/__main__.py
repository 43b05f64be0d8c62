"""`python -m tools.gpu_check`: see the package's documentation."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from bench.measure import PassKind, counter_of
from engine.batch import Phase
from engine.config import EngineConfig
from engine.engine import Engine
from engine.measure.device_speed import measure_device_speed
from engine.measure.roofline import DeviceSpeed
from tools.gpu_check import MISSING, rates
from tools.gpu_check.idle import idle
from tools.gpu_check.kernels import Sizes, choosing, elementwise_parity, tiles
from tools.gpu_check.parity import Heads, Spans, bandwidth, parity
from tools.gpu_check.report import Part, Report, Row

ROOT = Path(__file__).parents[2]
KERNEL_SECONDS = 240
"""Longest the Triton kernels may take to be compiled and compared."""

_COMMON = {
    "architectures": ["NemotronLabsDiffusionModel"], "model_type": "nemotron_labs_diffusion", "dtype": "bfloat16",
    "hidden_act": "silu", "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 11,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384,
    "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    config: dict[str, Any]
    """Of the model with random weights."""
    heads: list[Heads]
    spans: list[Spans]
    wide: Spans
    """For the kernel's bandwidth."""
    kernels: Sizes
    """For the kernels beside attention."""
    requests: int
    """For the agreement of modes."""
    passes: list[tuple[PassKind, float]]
    """With the multiple of the floor that each may take; 0: any."""
    in_flight: list[int]
    block_lengths: list[int]
    prompt: int
    answer: int
    max_model_len: int
    steps: int
    """Profiled."""
    bars: dict[int, float] = field(default_factory=dict)
    """Tokens a second of self-speculation by requests in flight."""


def _kind(phase: Phase, width: int, batch: int, context: int) -> PassKind:
    return PassKind(phase, width, batch, context)


SIZES = {
    "8b": Size(
        config=_COMMON | {
            "vocab_size": 131072, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 34,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 262144,
            "block_size": 32, "mask_token_id": 100, "rope_parameters": YARN,
        },
        heads=[Heads(32, 8, 128, 16), Heads(6, 2, 32, 16), Heads(16, 4, 64, 64), Heads(40, 8, 128, 1)],
        spans=[
            Spans("decode", [1, 17, 1000, 4095, 32767], 1, True),
            Spans("denoise", [0, 40, 1024, 8000], 32, False),
            Spans("verify", [3, 513, 2048], 32, True),
            Spans("prefill", [0, 5000], 700, True),
        ],
        wide=Spans("32 x 32 at 4096", [4096] * 32, 32, False),
        kernels=Sizes(intermediate=14336, tokens=[1, 33, 2048], vocabulary=131072, rows=[(1, 1), (1, 32), (32, 32)]),
        requests=200,
        passes=[
            (_kind(Phase.DENOISE, 32, 1, 1024), 1.20), (_kind(Phase.DECODE, 1, 32, 1024), 1.35),
            (_kind(Phase.DECODE, 1, 1, 1024), 0.0), (_kind(Phase.VERIFY, 32, 1, 1024), 0.0),
            (_kind(Phase.VERIFY, 32, 32, 1024), 0.0), (_kind(Phase.VERIFY, 8, 64, 1024), 0.0),
            (_kind(Phase.PREFILL, 2048, 1, 0), 0.0),
        ],
        in_flight=[1, 64], block_lengths=[8, 16, 32], prompt=1024, answer=128, max_model_len=32768, steps=24,
        bars={1: 1000.0, 64: 9000.0},
    ),
    "toy": Size(
        config=_COMMON | {
            "vocab_size": 160, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512,
            "block_size": 8, "mask_token_id": 100, "rope_parameters": YARN | {"original_max_position_embeddings": 16},
        },
        heads=[Heads(4, 2, 32, 4), Heads(6, 2, 64, 1)],
        spans=[
            Spans("decode", [1, 17, 70], 1, True), Spans("denoise", [0, 40], 8, False),
            Spans("verify", [3, 30], 8, True), Spans("prefill", [0, 20], 20, True),
        ],
        wide=Spans("2 x 4 at 64", [64] * 2, 4, False),
        kernels=Sizes(intermediate=48, tokens=[3], vocabulary=160, rows=[(1, 2)]),
        requests=4,
        passes=[(_kind(Phase.DENOISE, 8, 1, 64), 0.0), (_kind(Phase.DECODE, 1, 2, 64), 0.0)],
        in_flight=[1, 2], block_lengths=[8], prompt=16, answer=12, max_model_len=256, steps=4,
    ),
}  # fmt: skip


class Check:
    """One run: parts in the order of their worth, each on its own, until the time is up."""

    def __init__(self, size: str, device: torch.device, seconds: float, out: Path | None = None) -> None:
        """size: a key of SIZES. out: where the report is written, after every part."""
        self.name, self.size, self.device, self.out = size, SIZES[size], device, out
        self.deadline = time.monotonic() + seconds
        self.report = Report(_machine(device))
        self.kernels: rates.Kernels = "torch"

    def run(self) -> Report:
        """All parts. The Triton kernels come first and alone: what they do to the GPU ends with their process."""
        size, device = self.size, self.device
        triton = kernels_run(device)
        # Triton's interpreter takes minutes where a GPU takes milliseconds.
        if triton and self.kernels_in_a_child() and device.type == "cuda":
            self.kernels = "triton"
        self.part("parity torch", partial(parity, "torch", device, size.heads, size.spans, _seed()))
        if not triton:
            self.part("choosing", partial(choosing, device, size.kernels, _seed(), with_kernel=False))
        speed = DeviceSpeed(1.0, 1.0)

        def measure() -> Part:
            nonlocal speed
            # A CPU without bfloat16 products takes ten times as long over them.
            dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
            speed = measure_device_speed(device, dtype, 1 << 30)
            row: Row = {
                "bandwidth GB/s": speed.bandwidth / 1e9,
                "dtype": str(dtype).removeprefix("torch."),
                "TFLOP/s": speed.rate / 1e12,
            }
            return Part("The device at its best", [row])

        self.part("device", measure)
        bar = 0.7 if device.type == "cuda" else 0.0
        self.part("bandwidth", lambda: bandwidth(self.kernels, device, size.heads[0], size.wide, speed.bandwidth, bar))
        self.part("agreement", lambda: rates.agreement(device, self.kernels, size.requests, 0.99))
        if self.kernels == "triton":
            self.part("kernels agree", lambda: rates.kernels_agree(device, size.requests // 4, 0.95))
        with tempfile.TemporaryDirectory(prefix="lightcone-gpu-check-") as folder:
            (Path(folder) / "config.json").write_text(json.dumps(size.config))
            self._random_weights(folder, speed)
        if device.type == "cuda":
            narrow = Spans("32 x 1 at 4096", size.wide.contexts, 1, True)
            self.part("tiles", lambda: tiles(device, size.heads[0], [size.wide, narrow], speed.bandwidth))
        return self.report

    def triton_kernels(self) -> Report:
        """The parts that only need the Triton kernels."""
        size, device, seed = self.size, self.device, _seed()
        self.part("parity triton", partial(parity, "triton", device, size.heads, size.spans, seed))
        self.part("elementwise", partial(elementwise_parity, device, size.heads[0], size.kernels, seed))
        self.part("choosing", partial(choosing, device, size.kernels, seed, with_kernel=True))
        return self.report

    def kernels_in_a_child(self) -> bool:
        """Runs `triton_kernels` in a process of its own and takes over its parts. Returns whether all is right."""
        started, parts, problem = time.monotonic(), [], ""
        with tempfile.TemporaryDirectory(prefix="lightcone-gpu-check-") as folder:
            words = ["--triton-kernels", "--size", self.name, "--out", folder]
            try:
                done = subprocess.run(
                    [sys.executable, "-m", "tools.gpu_check", *words], cwd=ROOT, timeout=KERNEL_SECONDS, check=False
                )
                if done.returncode not in (0, 1):
                    problem = f"The process that ran them ended with {done.returncode}."
            except subprocess.TimeoutExpired:
                problem = f"They took more than {KERNEL_SECONDS} s."
            written = Path(folder) / "report.json"
            if written.exists():
                parts = [Part.of(found) for found in json.loads(written.read_text())["parts"]]
        self.report.parts += parts
        if problem or not parts:
            problem = problem or "Their process wrote no report."
            self.report.parts.append(Part("Triton kernels", problem=problem, seconds=time.monotonic() - started))
        self._write()
        return not problem and all(part.sound for part in parts)

    def _random_weights(self, folder: str, speed: DeviceSpeed) -> None:
        size = self.size
        engine: Engine | None = None

        def load() -> Part:
            nonlocal engine
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
            started = time.monotonic()
            engine = Engine.load(
                EngineConfig(
                    model=folder, load_format="dummy", device=str(self.device), dtype="bfloat16",
                    kernels=self.kernels, max_model_len=size.max_model_len, calibration_seconds=0.0,
                    max_batch_tokens=8192, prefix_caching=False,
                )
            )  # fmt: skip
            seconds = time.monotonic() - started
            weights = counter_of(engine).weight_bytes / 1e9
            return Part("Random weights", [{"a pass reads GB": weights, "seconds to load": seconds}])

        self.part("load", load)
        if engine is None:
            return
        loaded: Engine = engine
        self.part("passes", lambda: rates.passes(loaded, size.passes, speed))
        self.part(
            "throughput",
            lambda: rates.throughput(loaded, size.in_flight, size.block_lengths, size.prompt, size.answer, size.bars),
        )
        self.part("idle", lambda: idle(loaded, size.in_flight, size.steps, 0.05))
        self.part("memory", self._memory)

    def _memory(self) -> Part:
        if self.device.type != "cuda":
            return Part("Memory", [{"peak GB": None}])
        free, total = torch.cuda.mem_get_info(self.device)
        peak = torch.cuda.max_memory_allocated(self.device)
        return Part("Memory", [{"peak GB": peak / 1e9, "free GB": free / 1e9, "total GB": total / 1e9}])

    def _write(self) -> None:
        if self.out is not None:
            self.report.write(self.out)

    def part(self, name: str, make: Callable[[], Part]) -> Part:
        """Runs one part. What goes wrong in it is its own problem; with the time up it is left out, and says so."""
        started = time.monotonic()
        if started > self.deadline:
            part = Part(name, problem="Left out: the time was up.")
        else:
            try:
                part = make()
            except Exception as error:
                traceback.print_exc()
                part = Part(name, problem=f"{type(error).__name__}: {error}".splitlines()[0][:300])
        part.seconds = time.monotonic() - started
        self.report.parts.append(part)
        self._write()
        print(f"{part.name}: {part.problem or 'done'} ({part.seconds:.1f} s)", flush=True)
        return part


def _seed() -> int:
    return time.time_ns() % 1_000_000


def kernels_run(device: torch.device) -> bool:
    """Whether the Triton kernels can run at all: on a GPU, or in Triton's interpreter."""
    return find_spec("triton") is not None and (device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1")


def _machine(device: torch.device) -> Row:
    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "none"

    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "torch": installed("torch"), "triton": installed("triton"), "transformers": installed("transformers"),
        "without": ", ".join(MISSING) or "nothing", "C compiler": shutil.which("cc") or shutil.which("gcc") or "none",
    }  # fmt: skip


def main(words: list[str] | None = None) -> int:
    """Exits 0 if every part ran and every bar is met, else 1. The report is written either way."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="python -m tools.gpu_check", description="Check and measure on a GPU."
    )
    parser.add_argument("--out", type=Path, default=Path("build/gpu-check"), help="default: %(default)s")
    parser.add_argument("--size", choices=sorted(SIZES), help="default: 8b on a GPU, toy without one")
    parser.add_argument("--minutes", type=float, default=7.0, help="start no part after this (default %(default)s)")
    parser.add_argument("--triton-kernels", action="store_true", help="only whether these kernels are right")
    arguments = parser.parse_args(words)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = arguments.size or ("8b" if device.type == "cuda" else "toy")
    check = Check(size, device, arguments.minutes * 60, arguments.out)
    if arguments.triton_kernels:
        return 0 if check.triton_kernels().passed else 1
    report = check.run()
    print(report.markdown())
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
