"""How a processor multiplies best: whether bfloat16 is native to it, and which float storage is quickest, measured."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache

import torch

from engine.models.linear import packed
from engine.models.linear.base import Linear
from engine.models.linear.dense import DenseLinear
from engine.models.linear.packed import PackedLinear

ROW_COUNTS = (1, 8, 32)
"""Rows of the products that are timed: a step of one sequence, and blocks."""
ENOUGH_RUNS, ENOUGH_SECONDS = 4, 0.02
"""A row count is timed until both are reached; the fastest run counts."""
LARGEST = 1 << 22
"""Most elements of a matrix that is timed: rows beyond them change no ratio."""
WORKING_SET = 1 << 25
"""Bytes of matrices that are timed in turn, where the model has as many: those of one layer may stay in a cache."""
SMALL_LAYER = 1 << 20
"""Elements of a layer below which float32 is not packed, without timing: what a call costs decides there, and a start
must not differ from the next one by chance."""
WORTHWHILE = 1.05
"""Times that the packed storage must be faster over all row counts: less is as likely a neighbour's noise."""

CPU = torch.device("cpu")


def has_native_bfloat16() -> bool:
    """Whether this processor has instructions for products of bfloat16, and packed ones here are right."""
    # The table of capabilities came with a later torch than the oldest that is supported.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    native = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
    return native and packed.is_exact(torch.bfloat16)


def choose_float_storage(
    shapes: Iterable[tuple[int, int]], num_layers: int, dtype: torch.dtype, device: torch.device
) -> str:
    """`packed` where that is right and clearly faster for a model with such layers, else `dense`.

    shapes: (outputs, inputs) of a layer's matrices. One storage serves every number of rows: what a row becomes must
    not depend on its company beyond rounding.
    """
    if device.type != "cpu" or not packed.is_exact(dtype):
        return "dense"
    layer = [(min(outputs, LARGEST // inputs) or 1, inputs) for outputs, inputs in shapes]
    elements = sum(outputs * inputs for outputs, inputs in layer)
    if dtype == torch.float32 and elements < SMALL_LAYER:
        return "dense"
    timed = tuple(layer * min(num_layers, -(-WORKING_SET // (elements * dtype.itemsize))))
    return "packed" if advantage_of_packed(timed, dtype, torch.get_num_threads()) > WORTHWHILE else "dense"


@cache
@torch.inference_mode()
def advantage_of_packed(shapes: tuple[tuple[int, int], ...], dtype: torch.dtype, threads: int) -> float:
    """Times that packed products of matrices of these shapes are faster: the geometric mean over ROW_COUNTS.

    Measured once in a process, so that all models of one kind in it are multiplied alike.
    """
    generator = torch.Generator().manual_seed(0)
    dense: list[Linear] = [DenseLinear.empty({"timed": outputs}, inputs, dtype, CPU) for outputs, inputs in shapes]
    packed_ones: list[Linear] = [PackedLinear({"timed": outputs}, inputs, dtype, CPU) for outputs, inputs in shapes]
    for one, other in zip(dense, packed_ones, strict=True):
        weight = torch.randn((one.outputs, one.inputs), generator=generator) * one.inputs**-0.5
        one.load("timed", weight)
        other.load("timed", weight)
    clock = time.thread_time if threads == 1 else time.perf_counter
    ratios = []
    for rows in ROW_COUNTS:
        batches = [torch.randn((rows, inputs), generator=generator).to(dtype) for _, inputs in shapes]
        seconds = _fastest((dense, packed_ones), batches, clock)
        ratios.append(seconds[0] / max(seconds[1], 1e-9))
    return math.prod(ratios) ** (1 / len(ratios))


def _fastest(storages: Sequence[list[Linear]], batches: list[torch.Tensor], clock: Callable[[], float]) -> list[float]:
    """Seconds that each storage takes over the products, at its best; runs in turn, so that all meet the same load."""
    best, runs, begun = [math.inf] * len(storages), 0, clock()
    while runs < ENOUGH_RUNS or clock() - begun < ENOUGH_SECONDS:
        runs += 1
        for index, linears in enumerate(storages):
            started = clock()
            for linear, x in zip(linears, batches, strict=True):
                linear(x)
            best[index] = min(best[index], clock() - started)
    return best
