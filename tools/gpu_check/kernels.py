"""Checks of the elementwise and choosing kernels against torch, and times of the attention kernel's tile shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from engine.attention.base import AttentionBackend
from engine.measure.device_speed import fastest
from engine.models.elementwise import Elementwise
from engine.models.rope import QueryScaling, RopeConfig, RotaryTable, Rotation
from engine.request import SamplingParams
from engine.sampling.filters import best_tokens, sample
from engine.sampling.logprobs import log_probabilities, widened
from tools.gpu_check.parity import TOLERANCE, Case, Heads, Spans
from tools.gpu_check.report import Bar, Part, Row

if TYPE_CHECKING:
    from engine.gpu.attention import TileShape

BANNED = (11, 100)
WAYS = {
    "greedy": SamplingParams(temperature=0.0),
    "temperature": SamplingParams(temperature=1.0, seed=1),
    "temperature, min_p": SamplingParams(temperature=0.7, min_p=0.05, seed=2),
    "temperature, top_k, top_p": SamplingParams(temperature=0.9, top_k=50, top_p=0.9, seed=3),
}


@dataclass(frozen=True)
class KernelSizes:
    """Sizes at which the elementwise and choosing kernels are checked."""

    intermediate: int
    tokens: list[int]
    vocabulary: int
    rows: list[tuple[int, int]]
    """(spans, logit rows of each)"""


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest error, absolute or relative, whichever is smaller. NaN, or nothing to compare, counts as infinite."""
    if not found.numel():
        return math.inf
    error = float(((found.float() - expected) / expected.abs().clamp(min=1.0)).abs().max())
    return error if math.isfinite(error) else math.inf


@torch.inference_mode()
def elementwise_parity(device: torch.device, heads: Heads, sizes: KernelSizes, seed: int) -> Part:
    """Rotation and gate against float32."""
    from engine.gpu.elementwise import TritonElementwise

    part = Part("Parity of the elementwise kernels")
    generator = torch.Generator(device).manual_seed(seed)
    rope = RopeConfig(theta=1e6, query_scaling=QueryScaling(beta=0.1, original_max_positions=64))
    count = heads.num_heads + heads.num_kv_heads
    for dtype, bar in TOLERANCE.items():
        kernels, exact = TritonElementwise(1e-5, dtype, device), Elementwise(1e-5, torch.float32, device)
        table = RotaryTable(rope, heads.head_dim, 4096, dtype, device)
        worst = 0.0
        for tokens in sizes.tokens:
            positions = torch.randint(4096, (tokens,), generator=generator, device=device)
            rotation = table.rows(positions)
            qk = torch.randn(tokens, count, heads.head_dim, generator=generator, device=device).to(dtype)
            scale = rotation.query_scale
            wide = Rotation(rotation.cos.float(), rotation.sin.float(), None if scale is None else scale.float())
            expected = exact.rotate(qk.float(), heads.num_heads, wide)
            found = kernels.rotate(qk, heads.num_heads, rotation)
            turned = max(_error(a, b) for a, b in zip(found, expected, strict=True))
            gate_up = torch.randn(tokens, 2 * sizes.intermediate, generator=generator, device=device).to(dtype)
            opened = _error(kernels.silu_mul(gate_up), exact.silu_mul(gate_up.float()))
            name = str(dtype).removeprefix("torch.")
            part.rows.append({"tokens": tokens, "dtype": name, "rotation": turned, "gate": opened})
            worst = max(worst, turned, opened)
        part.bars.append(Bar(f"largest error in {str(dtype).removeprefix('torch.')}", worst, bar, at_most=True))
    return part


@torch.inference_mode()
def choosing(device: torch.device, sizes: KernelSizes, seed: int, with_kernel: bool) -> Part:
    """From bfloat16 logits to tokens and their log-probabilities, by torch's operations and by the kernels."""
    part = Part("Choosing tokens")
    generator = torch.Generator(device).manual_seed(seed)
    same, total, worst = 0, 0, 0.0
    for n, r in sizes.rows:
        logits = 3 * torch.randn(n, r, sizes.vocabulary, generator=generator, device=device)
        positions = torch.arange(n * r, device=device).view(n, r)
        for way, params in WAYS.items():
            half = logits.bfloat16()
            by_torch = partial(_by_torch, half, params, positions)
            row: Row = {"rows": n * r, "way": way, "torch us": fastest(by_torch, device) * 1e6}
            if with_kernel:
                agreed, error, seconds = _by_kernel(half, params, positions, *by_torch())
                same, total, worst = same + agreed, total + n * r, max(worst, error)
                rate = half.numel() * half.element_size() / seconds / 1e9
                row |= {"kernel us": seconds * 1e6, "GB/s": rate, "same": agreed, "log-probability error": error}
            part.rows.append(row)
    if with_kernel:
        # Noise differs by a few ulp and sums of a large vocabulary by their order: a rare tie may fall either way.
        part.bars = [
            Bar("share of tokens that torch chooses too", same / total, 0.999),
            Bar("largest error of their log-probabilities", worst, 1e-3, at_most=True),
        ]
    return part


def _by_torch(half: torch.Tensor, params: SamplingParams, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and their log-probabilities: what engine.sampling does without kernels."""
    logits = widened(half).index_fill_(-1, torch.tensor(BANNED, device=half.device), -math.inf)
    token_ids = best_tokens(logits) if params.plain else sample(logits, [params] * len(half), positions)
    return token_ids, log_probabilities(logits, token_ids)


def _by_kernel(
    half: torch.Tensor, params: SamplingParams, positions: torch.Tensor, ids: torch.Tensor, logprobs: torch.Tensor
) -> tuple[int, float, float]:
    """The number of tokens as expected, the largest error of their log-probabilities, and seconds."""
    from engine.gpu.choice import TritonChoice

    choice = TritonChoice(BANNED, half.device)
    picked = choice.pick(half, [params] * len(half), positions)
    agree = (picked.token_ids == ids) & picked.finite[:, None]
    seconds = fastest(lambda: choice.pick(half, [params] * len(half), positions), half.device)
    return int(agree.sum()), _error(picked.logprobs[agree], logprobs[agree]), seconds


@torch.inference_mode()
def tiles(device: torch.device, heads: Heads, spans: list[Spans], measured: float) -> Part:
    """Shapes of the attention kernel's tiles, timed: what engine.gpu.attention.TILE_SHAPES should hold."""
    from engine.gpu.attention import TILE_SHAPES, TritonAttention

    part = Part("Shapes of attention's tiles")
    for shape in spans:
        case = Case(heads, shape, torch.bfloat16, device, 0)
        rows: list[Row] = []
        for size, candidate in _candidates(shape.width * heads.num_heads // heads.num_kv_heads):
            row: Row = {"spans": shape.name, "rows": size, **candidate._asdict()}
            attention = TritonAttention(case.pool, heads.num_heads, shapes={size: candidate})
            attention.prepare(case.batch)
            try:
                seconds = fastest(_forward(attention, case), device)
                row |= {"us": seconds * 1e6, "of measured": case.kv_bytes / seconds / measured}
            except Exception as error:  # a shape that the GPU cannot hold
                row["problem"] = str(error).splitlines()[0][:80]
            row["in use"] = "yes" if TILE_SHAPES[2].get(size) == candidate else ""
            rows.append(row)
        part.rows += sorted(rows, key=lambda row: float(str(row.get("us", "inf"))))
    return part


def _forward(attention: AttentionBackend, case: Case) -> Callable[[], object]:
    return lambda: attention.forward(case.q, case.k, case.v, 0)


def _candidates(rows: int) -> Iterator[tuple[int, TileShape]]:
    from engine.gpu.attention import TileShape

    sizes = [size for size in (16, 32, 64, 128) if size >= min(rows, 128) // 2][:2]
    for size in sizes:
        for block_kv in (32, 64, 128):
            for num_warps in (4, 8):
                for num_stages in (2, 3):
                    yield size, TileShape(block_kv, num_warps, num_stages)
