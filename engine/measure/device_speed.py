"""Measures a device's memory bandwidth and matrix rate at their best, in about a second."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from engine.device import huge_pages
from engine.device.devices import synchronise
from engine.measure.roofline import DeviceSpeed
from engine.models.linear.storages import LINEARS

SMALLEST_SET = 1 << 20
LARGEST_SET = {"cpu": 1 << 28, "cuda": 1 << 30}
"""Bytes by type of device. They exceed any cache, so a larger set would be measured alike."""
MATRIX_SIZES = {"cpu": (256, 512, 1024), "cuda": (4096, 8192)}
ROUNDS = 2
PROBE_SECONDS = 0.08
"""Seconds spent in each round on each way to move memory and on each size of matrix product. Several short
probes, because other work on the machine slows down some of them, hardly all."""


def measure_device_speed(
    device: torch.device, dtype: torch.dtype, working_set: int, storage: str = "dense"
) -> DeviceSpeed:
    """The best of several ways to move memory and of several sizes of matrix product, each the fastest of its runs.

    storage: of the model's matrices, a key of LINEARS: products of 8-bit integers are several times faster than others.

    working_set: bytes that one pass reads. Memory is measured over as many, so that a cache which can hold the model
    between two passes counts for the device exactly as it does for the model.
    """
    working_set = min(max(working_set, SMALLEST_SET), LARGEST_SET.get(device.type, 1 << 28))
    return DeviceSpeed(measure_bandwidth(device, dtype, working_set), measure_rate(device, dtype, storage))


@torch.inference_mode()
def measure_bandwidth(device: torch.device, dtype: torch.dtype, working_set: int) -> float:
    """Bytes a second over `working_set` bytes that are touched again and again."""
    elements = max(2, working_set // dtype.itemsize // 2 * 2)
    memory = torch.ones(elements, dtype=dtype, device=device)
    if device.type == "cpu":
        huge_pages.use_for(memory)  # as the weights are
    low, high = memory.chunk(2)
    moved = elements * dtype.itemsize  # by each of these: reads, or reads of one half and writes of the other
    moves: list[Callable[[], object]] = [memory.sum, lambda: torch.dot(low, high), lambda: low.copy_(high)]
    return max(moved / fastest(move, device) for _ in range(ROUNDS) for move in moves)


@torch.inference_mode()
def measure_rate(device: torch.device, dtype: torch.dtype, storage: str = "dense") -> float:
    """Operations a second of square matrix products: the better of torch's own and of the storage's."""
    best = 0.0 if storage == "dense" else _rate_of_storage(device, dtype, storage)
    for size in MATRIX_SIZES.get(device.type, MATRIX_SIZES["cpu"]) * ROUNDS:
        left, right = (torch.full((size, size), 0.01, dtype=dtype, device=device) for _ in range(2))
        out = torch.empty_like(left)
        best = max(best, 2 * size**3 / fastest(lambda a=left, b=right, c=out: torch.mm(a, b, out=c), device))  # type: ignore[misc]
    return best


def _rate_of_storage(device: torch.device, dtype: torch.dtype, storage: str) -> float:
    best = 0.0
    for size in MATRIX_SIZES.get(device.type, MATRIX_SIZES["cpu"]):
        linear = LINEARS[storage]({"timed": size}, size, dtype, device, False)
        linear.load("timed", torch.full((size, size), 0.01))
        x = torch.full((size, size), 0.01, dtype=dtype, device=device)
        seconds = min(fastest(lambda linear=linear, x=x: linear(x), device) for _ in range(ROUNDS))  # type: ignore[misc]
        best = max(best, linear.operations * size / seconds)
    return best


def fastest(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest run, the first one not counted."""
    run()
    synchronise(device)
    # Launching and waiting cost a GPU a few microseconds: several runs share them.
    count = 1 if device.type == "cpu" else 8
    best = float("inf")
    deadline = time.perf_counter() + PROBE_SECONDS
    while True:
        started = time.perf_counter()
        for _ in range(count):
            run()
        synchronise(device)
        ended = time.perf_counter()
        best = min(best, (ended - started) / count)
        if ended > deadline:
            return best
