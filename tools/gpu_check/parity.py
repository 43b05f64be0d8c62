"""Checks of attention backends against dense attention: random inputs, every phase, long contexts.

Outputs hold NaN before each call, so that a value that is not written shows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from engine.attention.packed_pass import ForwardBatch
from engine.kv_cache.pool import KVCachePool
from engine.measure.device_speed import fastest
from engine.runner.kernels import make_attention
from tools.gpu_check.report import Bar, Part, Row

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
"""Largest error of an output, absolute or relative, whichever is smaller."""


@dataclass(frozen=True)
class Spans:
    """Equal spans of `width` query tokens, each after its own context."""

    name: str
    contexts: list[int]
    width: int
    causal: bool


@dataclass(frozen=True)
class Heads:
    """A head layout and how its KV is paged."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int


class Case:
    """A pool full of random K and V, pages scattered, and one pass over some spans of it."""

    def __init__(self, heads: Heads, spans: Spans, dtype: torch.dtype, device: torch.device, seed: int) -> None:
        generator = torch.Generator(device).manual_seed(seed)
        size = heads.page_size
        pages_each = [-(-(context + spans.width) // size) for context in spans.contexts]
        self.heads, self.spans = heads, spans
        self.pool = KVCachePool(
            num_layers=1, num_pages=1 + sum(pages_each), page_size=size, num_kv_heads=heads.num_kv_heads,
            head_dim=heads.head_dim, max_rows=len(pages_each), max_pages_per_row=max(pages_each), dtype=dtype,
            device=device,
        )  # fmt: skip
        for stored in (self.pool.k, self.pool.v):
            stored.normal_(generator=generator)
            stored[:, :size] = torch.nan  # page 0 belongs to no sequence: NaN shows if it is read
        scattered = np.random.default_rng(seed).permutation(sum(pages_each)) + 1
        ends = np.cumsum(pages_each)
        for row, (end, count) in enumerate(zip(ends, pages_each, strict=True)):
            self.pool.map_pages(row, 0, scattered[end - count : end].tolist())

        def random(count: int) -> torch.Tensor:
            shape = (len(pages_each) * spans.width, count, heads.head_dim)
            return torch.randn(shape, generator=generator, dtype=dtype, device=device)

        self.q, self.k, self.v = random(heads.num_heads), random(heads.num_kv_heads), random(heads.num_kv_heads)
        self.batch = self._pack()

    def _pack(self) -> ForwardBatch:
        spans, pool = self.spans, self.pool
        contexts = np.array(spans.contexts)
        places = (contexts[:, None] + np.arange(spans.width)).ravel()
        rows = np.arange(len(contexts)).repeat(spans.width)
        ends = contexts + spans.width
        limits = places + 1 if spans.causal else ends.repeat(spans.width)
        slots = pool.host_page_table[rows, places // pool.page_size] * pool.page_size + places % pool.page_size
        nothing = torch.zeros(0, dtype=torch.int64, device=pool.device)
        return ForwardBatch(
            token_ids=nothing, positions=torch.from_numpy(places).to(pool.device),
            kv_limits=torch.from_numpy(limits).to(pool.device), slots=torch.from_numpy(slots).to(pool.device),
            span_offsets=[i * spans.width for i in range(len(contexts) + 1)],
            span_rows=list(range(len(contexts))), span_kv_ends=ends.tolist(), host_kv_limits=limits,
        )  # fmt: skip

    @property
    def kv_bytes(self) -> int:
        """Bytes of K and V that the pass sees."""
        heads = self.heads
        positions = sum(context + self.spans.width for context in self.spans.contexts)
        return 2 * positions * heads.num_kv_heads * heads.head_dim * self.pool.dtype.itemsize

    def expected(self) -> torch.Tensor:
        """Dense attention in float32 (or wider), span by span: [T, num_heads, head_dim]."""
        heads, width = self.heads, self.spans.width
        exact = torch.promote_types(self.pool.dtype, torch.float32)
        group = heads.num_heads // heads.num_kv_heads
        parts = []
        for row, end in enumerate(self.batch.span_kv_ends):
            place = np.arange(end)
            table = self.pool.host_page_table[row, place // heads.page_size]
            slots = torch.from_numpy(table * heads.page_size + place % heads.page_size).to(self.pool.device)
            mine = slice(row * width, (row + 1) * width)
            k, v = (stored[0, slots].to(exact) for stored in (self.pool.k, self.pool.v))
            k[end - width :], v[end - width :] = self.k[mine].to(exact), self.v[mine].to(exact)
            k, v = (x.repeat_interleave(group, 1) for x in (k, v))
            scores = torch.einsum("qhd,khd->hqk", self.q[mine].to(exact), k) / math.sqrt(heads.head_dim)
            hidden = torch.arange(end, device=scores.device) >= self.batch.kv_limits[mine][:, None]
            parts.append(torch.einsum("hqk,khd->qhd", scores.masked_fill_(hidden, -torch.inf).softmax(-1), v))
        return torch.cat(parts)


@torch.inference_mode()
def parity(kernels: str, device: torch.device, heads: list[Heads], spans: list[Spans], seed: int) -> Part:
    """The backend's largest error over all head layouts, spans and types. NaN anywhere counts as infinite."""
    part = Part(f"Parity of {kernels} attention")
    worst = dict.fromkeys(TOLERANCE, 0.0)
    for number, (layout, shape, dtype) in enumerate((h, s, d) for h in heads for s in spans for d in TOLERANCE):
        case = Case(layout, shape, dtype, device, seed + number)
        attention = make_attention(kernels, case.pool, layout.num_heads)
        attention.prepare(case.batch)
        # An allocator tends to return the same memory: what the kernel leaves unwritten is then NaN.
        unwritten = torch.full_like(case.q, torch.nan)
        del unwritten
        found = attention.forward(case.q, case.k, case.v, 0)
        expected = case.expected()
        error = float(((found - expected) / expected.abs().clamp(min=1.0)).abs().max())
        error = error if math.isfinite(error) else math.inf
        worst[dtype] = max(worst[dtype], error)
        part.rows.append(
            {
                "spans": shape.name, "heads": f"{layout.num_heads}/{layout.num_kv_heads} x {layout.head_dim}",
                "page": layout.page_size, "dtype": str(dtype).removeprefix("torch."), "largest error": error,
            }
        )  # fmt: skip
    part.bars = [
        Bar(f"largest error in {str(dtype).removeprefix('torch.')}", worst[dtype], bar, at_most=True)
        for dtype, bar in TOLERANCE.items()
    ]
    return part


@torch.inference_mode()
def bandwidth(kernels: str, device: torch.device, heads: Heads, spans: Spans, measured: float, bar: float) -> Part:
    """Bandwidth at which one layer's attention reads K and V. measured: the device's bytes a second."""
    part = Part(f"Bandwidth of {kernels} attention")
    case = Case(heads, spans, torch.bfloat16, device, 0)
    attention = make_attention(kernels, case.pool, heads.num_heads)
    attention.prepare(case.batch)
    seconds = fastest(lambda: attention.forward(case.q, case.k, case.v, 0), device)
    share = case.kv_bytes / seconds / measured
    row: Row = {"spans": spans.name, "us": seconds * 1e6, "GB/s": case.kv_bytes / seconds / 1e9, "of measured": share}
    part.rows, part.bars = [row], [Bar("share of measured bandwidth", share, bar)]
    return part
