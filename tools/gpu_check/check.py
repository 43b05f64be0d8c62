"""One run of the check: its parts in order, each on its own, and the report."""

from __future__ import annotations

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
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch

from bench.timing.pass_times import counter_of
from engine.config import EngineConfig
from engine.engine import Engine
from engine.measure.device_speed import measure_device_speed
from engine.measure.roofline import DeviceSpeed
from tools.gpu_check import MISSING, rates
from tools.gpu_check.idle import idle
from tools.gpu_check.kernels import choosing, elementwise_parity, tiles
from tools.gpu_check.parity import Spans, bandwidth, parity
from tools.gpu_check.report import Part, Report, Row
from tools.gpu_check.sizes import SIZES

ROOT = Path(__file__).parents[2]
KERNEL_SECONDS = 240
"""Longest the Triton kernels may take to be compiled and compared."""


class Check:
    """One run: the parts in order of importance, each on its own, until the time is up."""

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
        """Runs `triton_kernels` in a child process and adds its parts to the report. Returns whether all passed."""
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
        """Runs one part. An error is kept in that part; after the time limit the part is left out, which it states."""
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
