"""Functions that all commands of `lightcone bench` share: options, loading and pinning, tables and files."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from engine.config import EngineConfig, Quantization
from engine.engine import Engine
from engine.errors import ConfigError

Commands = Any
"""The type of the object that `ArgumentParser.add_subparsers` returns."""


def add_command(
    commands: Commands, name: str, help_line: str, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    """Adds a subcommand with the options that all of them take."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, allow_abbrev=False, help=help_line, description=help_line
    )
    parser.set_defaults(run=run)
    parser.add_argument("--model", default="builtin", help="model directory, or builtin (default)")
    parser.add_argument("--model-family", help="family of the model (default: by its config.json)")
    parser.add_argument(
        "--model-block-length", type=int, metavar="N", help="trained block length, where no file says it"
    )
    parser.add_argument("--mask-token-id", type=int, metavar="N", help="id of the mask, where no file says it")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda")
    parser.add_argument("--dtype", default="auto", help="auto (default), float32, bfloat16, float16, float64")
    parser.add_argument(
        "--quantization", choices=typing.get_args(Quantization), default="auto", help="of the weights (default auto)"
    )
    parser.add_argument("--threads", type=int, default=None, help="torch threads on a CPU")
    parser.add_argument("--core", type=int, default=None, help="run on this CPU core only, with one thread (Linux)")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the figures to this file")
    return parser


def add_shared_commit(parser: argparse.ArgumentParser) -> None:
    """Adds the one setting of the engine that changes answers."""
    parser.add_argument(
        "--shared-commit", action=argparse.BooleanOptionalAction, default=EngineConfig().shared_commit,
        help="diffusion: the commit pass of a block carries the first step of the next one (default: as served)",
    )  # fmt: skip


def engine_config(args: argparse.Namespace, **fields: Any) -> EngineConfig:
    """The configuration that the common options describe; `fields` are added."""
    threads = 1 if args.core is not None else args.threads
    common = {
        "model": args.model, "device": args.device, "dtype": args.dtype, "quantization": args.quantization,
        "threads": threads,
    }  # fmt: skip
    return EngineConfig(**common, **overrides(args), **fields)


def overrides(args: argparse.Namespace) -> dict[str, Any]:
    """What the common options say of the model, as fields of EngineConfig."""
    return {
        "model_family": args.model_family, "block_length": args.model_block_length, "mask_token_id": args.mask_token_id,
    }  # fmt: skip


def load_engine(args: argparse.Namespace, load_format: Literal["auto", "dummy"] = "auto", **fields: Any) -> Engine:
    """Pins this process where asked to, and loads the engine. Raises EngineError."""
    if args.core is not None:
        pin(args.core)
    return Engine.load(engine_config(args, load_format=load_format, **fields))


def pin(core: int) -> None:
    """Keeps this process on one core. Raises ConfigError where that cannot be done."""
    if not hasattr(os, "sched_setaffinity"):
        raise ConfigError("--core needs an operating system that can pin processes (Linux).")
    try:
        os.sched_setaffinity(0, {core})
    except OSError:
        raise ConfigError(f"There is no core {core} to run on.") from None


def machine(engine: Engine) -> dict[str, object]:
    """The machine and the software that figures depend on."""
    device = engine.device
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "dtype": engine.info.dtype,
        "quantization": engine.info.quantization,
        "storage": engine.info.storage,
        "torch": torch.__version__,
    }


def show(title: str, columns: Mapping[str, str], rows: Iterable[Mapping[str, object]]) -> None:
    """Prints rows as a table. columns: key of a row -> heading. None prints as nothing."""
    table = Table(title=title, title_justify="left")
    for heading in columns.values():
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*(cell(row.get(key)) for key in columns))
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def cell(value: object) -> str:
    """Figures of three digits that count, everything else as it is."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def save(path: Path | None, report: Mapping[str, object] | Sequence[object]) -> None:
    """Writes a report as JSON, if a file was asked for. Raises ConfigError."""
    if path is None:
        return
    try:
        path.write_text(json.dumps(report, indent=1) + "\n")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def words(value: str) -> list[str]:
    """Comma separated words."""
    return value.split(",")


def integers(value: str) -> list[int]:
    """Comma separated integers."""
    return [int(item) for item in value.split(",")]


def numbers(value: str) -> list[float]:
    """Comma separated numbers."""
    return [float(item) for item in value.split(",")]
