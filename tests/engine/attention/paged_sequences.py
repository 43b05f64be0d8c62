"""Sequences in a hostile pool, with their K and V kept densely beside it in float64: what attention must come to."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from engine.attention.base import AttentionBackend
from engine.attention.packed_pass import ForwardBatch
from engine.attention.sdpa import SdpaAttention
from engine.kv_cache.pool import KVCachePool
from tests.reference.dense_attention import attend

NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 6, 2, 8
NUM_LAYERS = 2
POISON = 1e30
"""Fills every slot that was never written: finite, as a pool promises, but ruinous at any weight but 0."""


@dataclass(frozen=True)
class SpanOf:
    """Query tokens [start, start + length) of a sequence; limit None is causal, else all see [0, limit)."""

    row: int
    start: int
    length: int
    limit: int | list[int] | None = None

    @property
    def limits(self) -> list[int]:
        if isinstance(self.limit, list):
            return self.limit
        return [self.limit or place + 1 for place in range(self.start, self.start + self.length)]


@dataclass
class PagedSequences:
    """Hands out scattered pages. Page 0 belongs to nobody and is NaN throughout: whoever reads it shows it."""

    dtype: torch.dtype = torch.float64
    page_size: int = 4
    num_pages: int = 200
    max_positions: int = 128
    max_rows: int = 12
    seed: int = 0
    num_heads: int = NUM_HEADS
    num_kv_heads: int = NUM_KV_HEADS
    head_dim: int = HEAD_DIM
    pages: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pool = KVCachePool(
            num_layers=NUM_LAYERS,
            num_pages=self.num_pages,
            page_size=self.page_size,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            max_rows=self.max_rows,
            max_pages_per_row=-(-self.max_positions // self.page_size),
            dtype=self.dtype,
            device=torch.device("cpu"),
        )
        self.random = torch.Generator().manual_seed(self.seed)
        self.free = (torch.randperm(self.num_pages - 1, generator=self.random) + 1).tolist()
        for stored in (self.pool.k, self.pool.v):
            stored.fill_(POISON)
            stored[:, : self.page_size] = torch.nan
        shape = (NUM_LAYERS, self.max_rows, self.max_positions, self.num_kv_heads, self.head_dim)
        self.keys = torch.zeros(shape, dtype=torch.float64)
        self.values = torch.zeros(shape, dtype=torch.float64)

    def backend(self) -> SdpaAttention:
        return SdpaAttention(self.pool, self.num_heads)

    def draw(self, *shape: int) -> torch.Tensor:
        """Standard normal values that the pool's dtype holds exactly, in float64."""
        return torch.randn(shape, generator=self.random, dtype=torch.float64).to(self.dtype).double()

    def cover(self, row: int, positions: int) -> None:
        """Gives a sequence pages for its positions [0, positions)."""
        mine = self.pages.setdefault(row, [])
        missing = -(-positions // self.page_size) - len(mine)
        if missing > 0:
            pages = [self.free.pop() for _ in range(missing)]
            self.pool.map_pages(row, len(mine), pages)
            mine += pages

    def share(self, owner: int, row: int, num_pages: int) -> None:
        """A prefix-cache match: `row` begins with `owner`'s first pages."""
        self.pages[row] = self.pages[owner][:num_pages]
        self.pool.map_pages(row, 0, self.pages[row])
        positions = num_pages * self.page_size
        self.keys[:, row, :positions] = self.keys[:, owner, :positions]
        self.values[:, row, :positions] = self.values[:, owner, :positions]

    def slots(self, row: int, start: int, length: int) -> list[int]:
        size = self.page_size
        return [self.pages[row][place // size] * size + place % size for place in range(start, start + length)]

    def fill(self, row: int, start: int, end: int) -> None:
        """Puts context at positions [start, end) of a sequence, as earlier passes would have."""
        self.cover(row, end)
        slots = torch.tensor(self.slots(row, start, end - start), dtype=torch.int64)
        for layer in range(NUM_LAYERS):
            k, v = (self.draw(end - start, self.num_kv_heads, self.head_dim) for _ in range(2))
            self.keys[layer, row, start:end], self.values[layer, row, start:end] = k, v
            self.pool.write(layer, slots, k.to(self.dtype), v.to(self.dtype))

    def pack(self, spans: list[SpanOf]) -> ForwardBatch:
        slots: list[int] = []
        offsets = [0]
        for span in spans:
            self.cover(span.row, max(*span.limits, span.start + span.length))
            slots += self.slots(span.row, span.start, span.length)
            offsets.append(len(slots))
        limits = [limit for span in spans for limit in span.limits]
        return ForwardBatch(
            token_ids=torch.zeros(len(slots), dtype=torch.int64),
            positions=torch.tensor([place for s in spans for place in range(s.start, s.start + s.length)]),
            kv_limits=torch.tensor(limits),
            slots=torch.tensor(slots),
            span_offsets=offsets,
            span_rows=[span.row for span in spans],
            span_kv_ends=[max(span.limits) for span in spans],
            host_kv_limits=np.array(limits),
        )

    def check(self, backend: AttentionBackend, spans: list[SpanOf], tolerance: float = 1e-12) -> torch.Tensor:
        """Runs one pass in every layer and compares it with dense attention. Returns the last layer's result."""
        batch = self.pack(spans)
        backend.prepare(batch)
        num_tokens = batch.slots.numel()
        for layer in range(NUM_LAYERS):
            q = self.draw(num_tokens, self.num_heads, self.head_dim)
            k, v = (self.draw(num_tokens, self.num_kv_heads, self.head_dim) for _ in range(2))
            result = backend.forward(q.to(self.dtype), k.to(self.dtype), v.to(self.dtype), layer)
            expected = self.dense(batch, q, k, v, layer)
            assert result.shape == q.shape
            assert result.dtype == self.dtype
            torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)
        return result

    def dense(self, batch: ForwardBatch, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int) -> torch.Tensor:
        """Stores the pass's K and V, then attends span by span."""
        tokens = [slice(*ends) for ends in zip(batch.span_offsets, batch.span_offsets[1:], strict=False)]
        for row, span in zip(batch.span_rows, tokens, strict=True):
            self.keys[layer, row, batch.positions[span]] = k[span]
            self.values[layer, row, batch.positions[span]] = v[span]
        return torch.cat(
            [
                attend(q[span], self.keys[layer, row], self.values[layer, row], batch.kv_limits[span])
                for row, span in zip(batch.span_rows, tokens, strict=True)
            ]
        )
