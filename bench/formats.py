"""`lightcone bench formats`: passes of one model in several types and quantizations, in turn: speed, memory, error.

Random weights, the same for all. Without a model it is one of 350 million parameters, whose config.json can be written
for other commands.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import typing
from pathlib import Path

import torch

from bench import options
from bench.shapes import write_shape
from bench.timing.pass_times import PassKind, make_plan, time_passes
from engine.batch import Phase
from engine.config import DType, Quantization
from engine.engine import Engine
from engine.errors import ConfigError
from engine.measure.clock import clock_for
from engine.sampling.divided import whole

SCHEMA = "lightcone-bench-formats/1"
FORMATS = ["float32", "bfloat16", "int8", "int8-weights", "int4-weights"]
ROWS_COMPARED = 32


def add_parser(commands: options.Commands) -> None:
    """Adds `formats` to the parser of `lightcone bench`."""
    parser = options.add_command(
        commands, "formats", "passes in several types and quantizations, in turn: speed, memory, error", run
    )
    parser.set_defaults(model=None)
    parser.add_argument(
        "--formats", type=options.words, default=FORMATS,
        help=f"types and quantizations (with activations of --dtype); default {','.join(FORMATS)}",
    )  # fmt: skip
    parser.add_argument("--width", type=options.integers, default=[1, 8, 32], help="rows of a pass (default 1,8,32)")
    parser.add_argument("--context", type=options.integers, default=[64], help="cached tokens (default 64)")
    parser.add_argument("--repeats", type=int, default=5, help="counted, interleaved runs of every pass (default 5)")
    parser.add_argument(
        "--write-shape", type=Path, default=None, metavar="DIRECTORY",
        help="measure nothing: write the config.json of the 350M model for `--model DIRECTORY --load-format dummy`",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """`lightcone bench formats`. Raises EngineError."""
    if args.write_shape is not None:
        write_shape(args.write_shape)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        if args.model is None:
            args.model = folder
            write_shape(Path(folder))
        rows = measure(args, {name: load(args, name) for name in args.formats})
    columns = {
        "format": "format", "storage": "storage", "width": "rows", "context": "context", "ms": "ms", "speed": "speed",
        "megabytes": "MB of weights", "error": "error of logits",
    }  # fmt: skip
    options.show(f"Speed is relative to {args.formats[0]}: medians of {args.repeats} rounds", columns, rows)
    options.save(args.json, {"schema": SCHEMA, "threads": torch.get_num_threads(), "formats": rows})
    return 0


def load(args: argparse.Namespace, name: str) -> Engine:
    """An engine with random weights in the format: a type, or a quantization with activations of --dtype."""
    dtype, quantization = (name, "none") if name in typing.get_args(DType) else (args.dtype, name)
    if quantization not in typing.get_args(Quantization):
        raise ConfigError(f"There is no format {name!r}.")
    given = argparse.Namespace(**(vars(args) | {"dtype": dtype, "quantization": quantization}))
    longest = max(args.context) + max(*args.width, ROWS_COMPARED)
    return options.load_engine(
        given, load_format="dummy", calibration_seconds=0.0, kv_cache_tokens=longest + 64, max_running=1
    )


def measure(args: argparse.Namespace, engines: dict[str, Engine]) -> list[dict[str, object]]:
    """A row for each format and pass. The first format is what the others are compared with."""
    cells = [(width, context) for width in args.width for context in args.context]
    kinds = [PassKind(Phase.DECODE if width == 1 else Phase.DENOISE, width, 1, context) for width, context in cells]
    seconds: dict[str, list[list[float]]] = {name: [[] for _ in kinds] for name in engines}
    for _ in range(args.repeats):  # all formats in each round: a disturbance meets them all
        for name, engine in engines.items():
            for times, timed in zip(seconds[name], time_passes(engine, kinds, 1), strict=True):
                times += timed
    first = next(iter(engines))
    exact = logits_of(engines[first])
    rows: list[dict[str, object]] = []
    for name, engine in engines.items():
        error = float((logits_of(engine) - exact).norm() / exact.norm())
        for (width, context), times, base in zip(cells, seconds[name], seconds[first], strict=True):
            rows.append(
                {
                    "format": name,
                    "storage": engine.info.storage,
                    "width": width,
                    "context": context,
                    "clock": clock_for(engine.device).name,
                    "ms": statistics.median(times) * 1e3,
                    "speed": statistics.median(one / other for one, other in zip(base, times, strict=True)),
                    "megabytes": engine.info.weight_bytes / 1e6,
                    "error": error,
                }
            )
    return rows


def logits_of(engine: Engine) -> torch.Tensor:
    """Logits of the first tokens of a text, each row from those before it: [ROWS_COMPARED, vocabulary] float32."""
    logits = engine.runner.forward(make_plan(engine, PassKind(Phase.VERIFY, ROWS_COMPARED, 1, 0)))[0]
    if logits is None:
        raise AssertionError("a verifying pass has logits for every row")
    return whole(logits)[0].float().cpu()
