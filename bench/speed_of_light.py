"""`lightcone bench light`: the least times of passes on a device, their real times, and the difference by part.

A config.json is enough, without a checkpoint: random weights are as fast as trained ones.
"""

from __future__ import annotations

import argparse
from itertools import product
from typing import Any

import torch

from bench import options
from bench.timing.part_times import PARTS, pass_parts
from bench.timing.pass_times import PassKind, counter_of, make_plan
from engine.batch import KVLimits, Phase
from engine.device.devices import resolve_device
from engine.engine import Engine
from engine.measure.clock import clock_for
from engine.measure.device_speed import measure_device_speed
from engine.measure.roofline import DeviceSpeed, PassShape, PassWork, WorkCounter, visible_pairs
from engine.models.decoder import Decoder
from engine.models.decoder_config import DecoderConfig
from engine.models.families.overrides import Overrides
from engine.models.families.registry import describe_model
from engine.models.files import ConfigFile, model_directory
from engine.models.linear.storages import Storage
from engine.models.loader import DTYPES

SCHEMA = "lightcone-bench-light/1"


def add_parser(commands: options.Commands) -> None:
    """Adds `light` to the parser of `lightcone bench`."""
    parser = options.add_command(
        commands, "light", "speed of light: what passes must take at least, what they take, where the rest goes", run
    )
    parser.add_argument(
        "--width", type=options.integers, default=[1, 8, 32], help="tokens a sequence; 1 is AR (default 1,8,32)"
    )
    parser.add_argument("--batch", type=options.integers, default=[1, 4, 16], help="sequences (default 1,4,16)")
    parser.add_argument("--context", type=options.integers, default=[64, 512], help="cached tokens (default 64,512)")
    parser.add_argument("--repeats", type=int, default=7, help="runs of every pass; the fastest counts (default 7)")
    parser.add_argument(
        "--speed", type=options.numbers, default=None, metavar="GB/s,TFLOP/s",
        help="the device's bandwidth and matrix rate, instead of measuring them",
    )  # fmt: skip
    parser.add_argument("--floors-only", action="store_true", help="load and run nothing; the least times alone")


def run(args: argparse.Namespace) -> int:
    """`lightcone bench light`."""
    cells = list(product(args.width, args.batch, args.context))
    if args.floors_only:
        device, dtype, config = _read(args)
        # Enough to be counted, and no memory taken.
        storage = Storage() if args.quantization in ("auto", "none") else Storage.quantized(args.quantization)
        shapes = Decoder(config, dtype=dtype, device=torch.device("meta"), num_positions=1, storage=storage)
        counter = WorkCounter(shapes, dtype.itemsize)
        speed = _speed(args, device, dtype, counter, shapes.storage.layers)
        rows = [floor_figures(cell, counter.count(canvas_shape(*cell)), speed) for cell in cells]
        _print(args.model, counter, speed, rows)
        options.save(args.json, _report(args, counter, speed, rows, {}))
        return 0
    engine = options.load_engine(args, load_format="dummy", calibration_seconds=0.0)
    counter = counter_of(engine)
    speed = _speed(args, engine.device, engine.runner.decoder.dtype, counter, engine.info.storage)
    rows = [measured_figures(engine, cell, speed, args.repeats) for cell in cells if pass_kind(*cell).fits(engine)]
    _print(args.model, counter, speed, rows)
    machine = options.machine(engine) | {"clock": clock_for(engine.device).name}
    options.save(args.json, _report(args, counter, speed, rows, machine))
    return 0


def pass_kind(width: int, batch: int, context: int) -> PassKind:
    """An AR step of width 1, else a denoising step."""
    return PassKind(Phase.DECODE if width == 1 else Phase.DENOISE, width, batch, context)


def canvas_shape(width: int, batch: int, context: int) -> PassShape:
    """The shape of such a pass, counted without a plan. Every token of a canvas sees all of it."""
    return PassShape(
        tokens=width,
        logit_rows=width,
        cached=context,
        pairs=visible_pairs(width, context, KVLimits.up_to(context + width)),
    ).times(batch)


def floor_figures(cell: tuple[int, int, int], work: PassWork, speed: DeviceSpeed) -> dict[str, Any]:
    """The least time of a pass, in milliseconds, whole and by part."""
    width, batch, context = cell
    total = work.total
    return {
        "width": width,
        "batch": batch,
        "context": context,
        "bytes": total.bytes,
        "operations": total.operations,
        "bound": "memory" if total.bytes / speed.bandwidth > total.operations / speed.rate else "matrices",
        "floor_ms": total.seconds(speed) * 1e3,
        "part_floors_ms": {name: part.seconds(speed) * 1e3 for name, part in work._asdict().items()},
    }


def measured_figures(engine: Engine, cell: tuple[int, int, int], speed: DeviceSpeed, repeats: int) -> dict[str, Any]:
    """The least time and the measured time of a pass, in milliseconds, whole and by part."""
    plan = make_plan(engine, pass_kind(*cell))
    figures = floor_figures(cell, counter_of(engine).count(PassShape.of(plan)), speed)
    seconds, parts = pass_parts(engine, plan, repeats)
    return figures | {
        "ms": seconds * 1e3,
        "light_share": figures["floor_ms"] / (seconds * 1e3),
        "parts_ms": {name: taken * 1e3 for name, taken in parts.items()},
    }


def _read(args: argparse.Namespace) -> tuple[torch.device, torch.dtype, DecoderConfig]:
    """A config.json without its weights. Raises ModelLoadError."""
    directory = model_directory(args.model)
    file = ConfigFile.read(directory / "config.json")
    generation = ConfigFile.read(directory / "generation_config.json", optional=True)
    stored = str(file.values.get("dtype") or file.values.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    dtype = DTYPES.get(args.dtype) or DTYPES.get(stored, torch.bfloat16)
    return resolve_device(args.device), dtype, describe_model(file, generation, _overrides(args)).config


def _overrides(args: argparse.Namespace) -> Overrides:
    return Overrides(family=args.model_family, block_length=args.model_block_length, mask_token_id=args.mask_token_id)


def _speed(
    args: argparse.Namespace, device: torch.device, dtype: torch.dtype, counter: WorkCounter, storage: str
) -> DeviceSpeed:
    if args.speed is None:
        return measure_device_speed(device, dtype, counter.weight_bytes, storage)
    bandwidth, rate = args.speed
    return DeviceSpeed(bandwidth * 1e9, rate * 1e12)


def _report(
    args: argparse.Namespace, counter: WorkCounter, speed: DeviceSpeed, rows: list[dict[str, Any]],
    machine: dict[str, object],
) -> dict[str, object]:  # fmt: skip
    return {
        "schema": SCHEMA,
        "machine": machine,
        "model": args.model,
        "weight_bytes": counter.weight_bytes,
        "kv_bytes_per_token": counter.kv_bytes,
        "device_speed": speed._asdict(),
        "device_speed_given": args.speed is not None,
        "passes": rows,
    }


def _print(model: str, counter: WorkCounter, speed: DeviceSpeed, rows: list[dict[str, Any]]) -> None:
    print(
        f"{model}: a pass reads {counter.weight_bytes / 1e6:.1f} MB of weights; a token's KV is "
        f"{counter.kv_bytes / 1e3:.1f} kB\n"
        f"device: {speed.bandwidth / 1e9:.1f} GB/s, {speed.rate / 1e12:.3f} TFLOP/s"
    )
    columns = {
        "width": "width", "batch": "batch", "context": "context", "bound": "bound by", "floor_ms": "least ms"
    }  # fmt: skip
    if rows and "ms" in rows[0]:
        columns |= {"ms": "ms", "light_share": "of light"} | {name: name for name in PARTS}
    shown = [row | {name: _part(row, name) for name in PARTS if "ms" in row} for row in rows]
    options.show("Passes, milliseconds; by part: least/taken", columns, shown)


def _part(row: dict[str, Any], name: str) -> str:
    taken = options.cell(row["parts_ms"][name])
    floor = row["part_floors_ms"].get(name, 0.0)
    return taken if floor < 1e-3 or name == "norms" else f"{options.cell(floor)}/{taken}"
