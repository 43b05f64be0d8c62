"""`lightcone bench passes`: times of passes by phase, width, batch and context, and host time of a step."""

from __future__ import annotations

import argparse
import statistics
from itertools import product

from bench import options
from bench.timing.host_time import HostTime, Setting, measure_host, serve
from bench.timing.pass_times import PassKind, counter_of, make_plan, time_passes
from engine.batch import Phase
from engine.engine import Engine
from engine.measure.device_speed import measure_device_speed
from engine.measure.roofline import DeviceSpeed, PassShape

SCHEMA = "lightcone-bench-passes/1"
PHASES = ("decode", "prefill", "denoise", "draft", "verify", "commit")
SERVED = 1024


def add_parser(commands: options.Commands) -> None:
    """Adds `passes` to the parser of `lightcone bench`."""
    parser = options.add_command(
        commands, "passes", "what passes take by phase, width, batch and context; a step's time outside the model", run
    )
    parser.add_argument("--phase", type=options.words, default=list(PHASES), help="default: " + ",".join(PHASES))
    parser.add_argument("--width", type=options.integers, default=[8, 32], help="tokens of a block (default 8,32)")
    parser.add_argument("--chunk", type=options.integers, default=[256], help="tokens of a prefill chunk (default 256)")
    parser.add_argument("--batch", type=options.integers, default=[1, 4, 16], help="sequences (default 1,4,16)")
    parser.add_argument("--context", type=options.integers, default=[64, 512], help="cached tokens (default 64,512)")
    parser.add_argument("--repeats", type=int, default=7, help="counted, interleaved runs of every pass (default 7)")
    parser.add_argument("--cycles", type=int, default=5, help="host time: sixteens of steps a setting (default 5)")
    parser.add_argument("--load-format", choices=("auto", "dummy"), default="auto", help="dummy: random weights")
    parser.add_argument("--tensor-parallel-size", type=int, default=1, help="ranks; figures are rank 0's (default 1)")


def run(args: argparse.Namespace) -> int:
    """`lightcone bench passes`."""
    # Widths of speculation are not chosen here: nothing to calibrate for.
    ranks = {"calibration_seconds": 0.0, "tensor_parallel_size": args.tensor_parallel_size}
    engine = options.load_engine(args, load_format=args.load_format, **ranks)
    try:
        return measure(args, engine)
    finally:
        engine.close()


def measure(args: argparse.Namespace, engine: Engine) -> int:
    """Measures, prints and saves."""
    counter = counter_of(engine)
    speed = measure_device_speed(engine.device, engine.runner.decoder.dtype, counter.weight_bytes, engine.info.storage)
    kinds = [kind for kind in pass_kinds(args) if kind.fits(engine)]
    rows = pass_figures(engine, kinds, time_passes(engine, kinds, args.repeats), speed)
    hosts = [figures.figures() for figures in host_times(engine, args.cycles)]
    _print(rows, hosts, speed, args.repeats)
    report = {
        "schema": SCHEMA,
        "machine": options.machine(engine),
        "model": args.model,
        "device_speed": speed._asdict(),
        "passes": rows,
        "host": hosts,
    }
    options.save(args.json, report)
    return 0


def pass_kinds(args: argparse.Namespace) -> list[PassKind]:
    """The passes to measure. A decoding step is one token wide, a prefill chunk as wide as --chunk says."""
    kinds = []
    for name, batch, context in product(args.phase, args.batch, args.context):
        phase = Phase(name)
        widths = {Phase.DECODE: [1], Phase.PREFILL: args.chunk}.get(phase, args.width)
        kinds += [PassKind(phase, width, batch, context) for width in widths]
    return sorted(kinds, key=lambda kind: (PHASES.index(kind.phase), kind.width, kind.batch, kind.context))


def pass_figures(
    engine: Engine, kinds: list[PassKind], seconds: list[list[float]], speed: DeviceSpeed
) -> list[dict[str, object]]:
    """One row for each pass: its kind, its bytes and operations, its least time and its time (milliseconds)."""
    counter = counter_of(engine)
    rows: list[dict[str, object]] = []
    for kind, times in zip(kinds, seconds, strict=True):
        work = counter.count(PassShape.of(make_plan(engine, kind))).total
        floor, median = work.seconds(speed), statistics.median(times)
        rows.append(
            {
                "phase": str(kind.phase),
                "width": kind.width,
                "batch": kind.batch,
                "context": kind.context,
                "bytes": work.bytes,
                "operations": work.operations,
                "floor_ms": floor * 1e3,
                "median_ms": median * 1e3,
                "fastest_ms": min(times) * 1e3,
                "light_share": floor / median,
            }
        )
    return rows


def host_times(engine: Engine, cycles: int) -> list[HostTime]:
    """Host time by batch, by context, by mode, and after a thousand requests more."""
    config, most = engine.config, engine.info.max_model_len
    batches = [batch for batch in (1, 4, 16, 64) if batch <= config.max_running]
    contexts = [context for context in (64, 256, 768) if context + 64 <= most]
    batch = min(16, config.max_running)
    settings = [Setting(batch=size) for size in batches]
    settings += [Setting(batch=batch, context=context) for context in contexts[1:]]
    settings += [Setting(batch=batch, temperature=1.0)]
    settings += [Setting(decoding, batch=batch) for decoding in engine.info.decodings if decoding != "ar"]  # type: ignore[arg-type]
    results = [measure_host(engine, setting, cycles) for setting in settings]
    serve(engine, SERVED)
    return [*results, measure_host(engine, Setting(batch=batch, served=SERVED), cycles)]


def _print(rows: list[dict[str, object]], hosts: list[dict[str, object]], speed: DeviceSpeed, repeats: int) -> None:
    print(f"device: {speed.bandwidth / 1e9:.1f} GB/s over the model's bytes, {speed.rate / 1e9:.1f} GFLOP/s")
    shown = [
        row | {"megabytes": float(str(row["bytes"])) / 1e6, "megaops": float(str(row["operations"])) / 1e6}
        for row in rows
    ]
    columns = {
        "phase": "phase", "width": "width", "batch": "batch", "context": "context", "megabytes": "MB",
        "megaops": "Mop", "floor_ms": "least ms", "median_ms": "ms", "fastest_ms": "fastest ms",
        "light_share": "of light",
    }  # fmt: skip
    options.show(f"Passes; medians of {repeats} interleaved runs", columns, shown)
    host_columns = {
        "decoding": "decoding", "batch": "batch", "context": "context", "temperature": "temp", "served": "served",
        "step_us": "step us", "host_us": "host us", "host_share": "share", "schedule_us": "schedule",
        "pack_us": "pack", "decide_us": "decide", "conclude_us": "conclude", "commit_us": "commit",
        "messages_us": "messages",
    }  # fmt: skip
    options.show("A step's time outside the model, microseconds", host_columns, hosts)
