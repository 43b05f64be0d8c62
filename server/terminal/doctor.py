"""`lightcone doctor`: what this machine has, what a model needs, and what stands in the way of serving it.

No weight is loaded and nothing is fetched. What needs torch is found out by a child process.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import msgspec

from engine.config import EngineConfig
from engine.errors import ModelLoadError
from engine.messages import Inspection, ModelNeeds
from server.text.model_files import local_directory
from server.text.served_model import ServedModel
from server.version import VERSION

CHILD = (sys.executable, "-P", "-m", "engine.measure.inspection")
TIMEOUT = 600.0
GIBI = 1024**3
_ROOT = str(Path(__file__).resolve().parents[2])

Level = Literal["ok", "note", "problem"]
T = TypeVar("T")


class Finding(NamedTuple):
    """A line of the report."""

    level: Level
    subject: str
    text: str


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the report. Returns 1 if something stands in the way of serving, else 0."""
    arguments = make_parser().parse_args(argv)
    config = EngineConfig(model=arguments.model, device=arguments.device, dtype=arguments.dtype)
    worst = 0
    for finding in examine(config):
        mark = {"ok": "ok", "note": "--", "problem": "!!"}[finding.level]
        print(f"{mark}  {finding.subject:<10} {' '.join(finding.text.split())}", flush=True)
        worst |= finding.level == "problem"
    return int(worst)


def make_parser() -> argparse.ArgumentParser:
    """The parser of `lightcone doctor`."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="lightcone doctor",
        description="What this machine has, what a model needs, and what stands in the way of serving it.",
        epilog="Nothing is loaded and nothing is fetched. ok: as it should be; --: worth knowing; !!: in the way, and "
        "the exit status is 1.",
    )
    parser.add_argument(
        "model", nargs="?", default="builtin", metavar="MODEL", help="a directory, org/name, or builtin"
    )
    parser.add_argument("--device", default="auto", help="as for serve (default: auto)")
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "float64", "float32", "bfloat16", "float16"), help="as for serve"
    )
    return parser


def examine(config: EngineConfig) -> Iterator[Finding]:
    """The findings, as they are made."""
    yield Finding("ok", "lightcone", f"{VERSION}, Python {platform.python_version()} on {platform.platform()}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = free_memory()
    yield Finding(
        "ok", "machine", f"{cores} cores, {_size(memory) + ' of memory free' if memory else 'memory unknown'}"
    )
    directory, absent = _found(lambda: local_directory(config.model))
    # A model that is not here leaves the machine to be looked at; the built-in one is always here.
    asked = msgspec.structs.replace(config, model="builtin" if directory is None else str(directory))
    try:
        found = _inspected(asked)
    except (subprocess.SubprocessError, msgspec.DecodeError) as error:
        yield Finding("problem", "torch", _last_line(error))
        return
    yield from _machine(found)
    if directory is None:
        yield Finding("problem", "model", absent)
    elif found.model is None:
        yield Finding("problem", "model", found.problem)
    else:
        yield from _model(config, directory, found, found.model, memory)


def _inspected(config: EngineConfig) -> Inspection:
    """What the child found. Raises SubprocessError or DecodeError if it could not look."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])])}
    done = subprocess.run(
        CHILD, input=msgspec.json.encode(config), capture_output=True, env=environment, timeout=TIMEOUT, check=True
    )
    return msgspec.json.decode(done.stdout, type=Inspection)


def _last_line(error: Exception) -> str:
    """Why the child could not look, in one line."""
    told = getattr(error, "stderr", None) or b""
    lines = told.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else str(error)


def _machine(found: Inspection) -> Iterator[Finding]:
    built = f"built for CUDA {found.cuda}" if found.cuda else "a build without CUDA"
    yield Finding("ok", "torch", f"{found.torch}, {built}; threads on a CPU: {found.threads}")
    if found.huge_pages == "never":
        text = "the system grants none: passes of few tokens are slower on the CPU (transparent_hugepage/enabled)"
        yield Finding("note", "memory", text)
    for gpu in found.gpus:
        about = (
            f"{gpu.name}, compute capability {gpu.capability}, {_size(gpu.free_bytes)} of {_size(gpu.total_bytes)} free"
        )
        yield Finding("ok", "GPU", about)
    if not found.gpus:
        yield Finding("note", "GPU", "none that torch sees: models run on the CPU")
    for name, obstacle in found.kernels.items():
        yield Finding("note" if obstacle else "ok", "kernels", f"{name}: {obstacle or 'can run here'}")


def _model(
    config: EngineConfig, directory: Path, found: Inspection, needs: ModelNeeds, memory: int | None
) -> Iterator[Finding]:
    info = needs.info
    count = _parameters(info.num_parameters)
    yield Finding(
        "ok", "model", f"{config.model}: {info.family}, {count} parameters, context {info.max_model_len} tokens"
    )
    default = f"default {info.default_decoding}, block length {info.block_length}"
    yield Finding("ok", "decoding", f"{', '.join(info.decodings)} ({default})")
    yield Finding("ok", "files", "configuration, and the name, shape and type of every weight, fit")
    yield Finding("ok", "dtype", f"{info.dtype} on {found.device}")
    free = memory
    if found.device.startswith("cuda"):
        free = found.gpus[int(found.device.partition(":")[2] or 0)].free_bytes
    kv = f"{needs.kv_bytes_per_token * 1000 / 1024**2:.1f} MiB of KV for 1,000 tokens"
    fits = free is None or needs.weight_bytes < free
    there = "" if free is None else f"; {_size(free)} are free"
    yield Finding("ok" if fits else "problem", "memory", f"{_size(needs.weight_bytes)} of weights, {kv}{there}")
    served, problem = _found(lambda: ServedModel.load("model", info, directory))
    if served is None:
        yield Finding("problem", "tokenizer", problem)
        return
    yield Finding("ok", "tokenizer", "fits the model")
    if served.chat is None:
        yield Finding("note", "chat", served.no_chat)
    else:
        yield Finding("ok", "chat", "the template can be used")


def _found(look: Callable[[], T]) -> tuple[T | None, str]:
    """What was found, or why nothing was."""
    try:
        return look(), ""
    except ModelLoadError as error:
        return None, str(error)


def free_memory() -> int | None:
    """Bytes that programs could still take, where the system tells (Linux)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        [kibi] = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError):
        return None
    return kibi * 1024


def _size(count: int) -> str:
    """Bytes as people read them."""
    return f"{count / GIBI:.1f} GiB" if count >= GIBI / 10 else f"{count / 1024**2:.1f} MiB"


def _parameters(count: int) -> str:
    """A number of parameters as people read it."""
    for unit, name in ((10**9, "billion"), (10**6, "million")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count:,}"
