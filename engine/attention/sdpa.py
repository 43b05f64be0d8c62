"""The reference attention backend: any device, any float dtype, torch's scaled_dot_product_attention.

A pass is cut into *segments*: spans with the same query length and similar contexts, attended in one call. For each one
the pages are gathered into a scratch buffer, which is small enough to stay in a processor's cache, and read from there.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from engine.attention.base import AttentionBackend
from engine.attention.packed_pass import ForwardBatch
from engine.device.transfer import to_device
from engine.kv_cache.pool import KVCachePool

# Measured on a CPU with a 6-layer model of 2 KV heads of 32: a segment costs as much again as about this many
# (query, padding key) pairs, where a key's gather counts as GATHER_COST queries.
PADDING_BUDGET = 8192
GATHER_COST = 4
# Elements of K (and of V) gathered for one call: 2 MiB in float32. Larger ones fall out of the cache and were slower.
SCRATCH_ELEMENTS = 1 << 19
# Longer spans are attended in tiles of this many queries, so that a causal one does not compute what it cannot see.
QUERY_TILE = 128
# A single span of so many queries that see different positions needs no mask row for every head of a group: its heads
# become a batch. Below it they are further queries, for which K and V are read, and in half types packed, once a KV
# head instead of once a query head: one query over 4,096 positions then takes a quarter of the time.
WIDE_SPAN = 32


@dataclass(slots=True, eq=False)
class _Tile:
    """Query rows attended in one call: q tokens of each of the segment's n spans."""

    rows: slice | torch.Tensor
    """Places of the n * q query tokens in the batch, span by span."""
    mask: torch.Tensor
    """Added to the scores: 0 where visible, -inf elsewhere. [n, 1, 1, kv] where all of a span's queries see the same,
    else [n, 1, q * group, kv], or [1, 1, q, kv] of a single wide span."""
    keys: torch.Tensor
    """[n, num_kv_heads, kv, head_dim], a view of the scratch; so is `values`."""
    values: torch.Tensor


@dataclass(slots=True, eq=False)
class _Segment:
    pages: torch.Tensor
    """[n * pages_per_span] int64"""
    key_pages: torch.Tensor
    """[n * pages_per_span, page_size * num_kv_heads * head_dim], a view of the scratch; so is `value_pages`."""
    value_pages: torch.Tensor
    tiles: list[_Tile]


class SdpaAttention(AttentionBackend):
    """Gathers pages, then attends densely. The cost depends on the batch alone, never on the pool's size."""

    def __init__(self, pool: KVCachePool, num_heads: int, scale: float | None = None) -> None:
        """scale: multiplies the scores. None: 1/sqrt(head_dim)."""
        if num_heads % pool.num_kv_heads:
            raise ValueError(f"{num_heads} query heads cannot share {pool.num_kv_heads} KV heads evenly")
        self._pool = pool
        self._group = num_heads // pool.num_kv_heads
        self._scale = scale
        self._page_elements = pool.page_size * pool.num_kv_heads * pool.head_dim
        longest = pool.host_page_table.shape[1] * pool.page_size
        self._places = torch.arange(longest, device=pool.device)
        self._visible = torch.zeros((), dtype=pool.dtype, device=pool.device)
        self._hidden = torch.full((), float("-inf"), dtype=pool.dtype, device=pool.device)
        # Kept between passes: fresh memory of this size is mapped page by page, which costs more than the gather.
        self._scratch = self._new_scratch(0)
        self._slots = torch.empty(0, dtype=torch.int64, device=pool.device)
        self._segments: list[_Segment] = []

    def prepare(self, batch: ForwardBatch) -> None:
        """Groups the pass's spans into segments and builds their gather indices and masks."""
        groups = self._group_spans(batch)
        largest = max(len(spans) * num_pages for spans, num_pages in groups) * self._page_elements
        if self._scratch.shape[1] < largest:
            self._scratch = self._new_scratch(largest)
        self._slots = batch.slots
        self._segments = [self._segment(batch, spans, num_pages) for spans, num_pages in groups]

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int) -> torch.Tensor:
        """See AttentionBackend. All K and V are written before any is read, so spans of one sequence see each other."""
        self._pool.write(layer, self._slots, k, v)
        if len(self._segments) == 1 and len(self._segments[0].tiles) == 1:  # the whole batch, in order
            self._gather(self._segments[0], layer)
            return self._attend(q, self._segments[0].tiles[0])
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        for segment in self._segments:
            self._gather(segment, layer)
            for tile in segment.tiles:
                out[tile.rows] = self._attend(q[tile.rows], tile)
        return out

    def _gather(self, segment: _Segment, layer: int) -> None:
        torch.index_select(self._pool.k_pages[layer], 0, segment.pages, out=segment.key_pages)
        torch.index_select(self._pool.v_pages[layer], 0, segment.pages, out=segment.value_pages)

    def _attend(self, q: torch.Tensor, tile: _Tile) -> torch.Tensor:
        """q and the result: [n * q, num_heads, head_dim]. K and V are never expanded to the query heads."""
        spans, kv_heads, _, head_dim = tile.keys.shape
        grouped = q.view(spans, -1, kv_heads, self._group, head_dim)
        if spans == 1 and self._group > 1 and tile.mask.shape[2] == q.shape[0] > 1:
            # One mask row serves all heads of a group, which become the batch, with K and V broadcast over it.
            queries = grouped[0].permute(2, 1, 0, 3)
            keys, values = (x.expand(self._group, -1, -1, -1) for x in (tile.keys, tile.values))
            attended = scaled_dot_product_attention(queries, keys, values, attn_mask=tile.mask, scale=self._scale)
            return attended.permute(2, 1, 0, 3).reshape(q.shape)
        # The heads of a group become further queries of their KV head.
        queries = grouped.transpose(1, 2).reshape(spans, kv_heads, -1, head_dim)
        attended = scaled_dot_product_attention(queries, tile.keys, tile.values, attn_mask=tile.mask, scale=self._scale)
        return attended.view(spans, kv_heads, -1, self._group, head_dim).transpose(1, 2).reshape(q.shape)

    def _group_spans(self, batch: ForwardBatch) -> list[tuple[list[int], int]]:
        """Cuts the pass into segments: (indices of the spans, KV pages gathered for each)."""
        by_length: defaultdict[int, list[int]] = defaultdict(list)
        for span, (start, end) in enumerate(zip(batch.span_offsets, batch.span_offsets[1:], strict=False)):
            by_length[end - start].append(span)
        kv_ends, page_size = batch.span_kv_ends, self._pool.page_size
        segments: list[tuple[list[int], int]] = []
        for length, spans in by_length.items():
            spans.sort(key=kv_ends.__getitem__, reverse=True)
            current: list[int] = []
            num_pages = most_spans = padding = 0
            for span in spans:
                padding += (num_pages * page_size - kv_ends[span]) * (length + GATHER_COST)
                if not current or len(current) == most_spans or padding > PADDING_BUDGET:
                    current, padding = [], 0
                    num_pages = -(-kv_ends[span] // page_size)
                    most_spans = self._most_spans(length, num_pages)
                    segments.append((current, num_pages))
                current.append(span)
        return segments

    def _most_spans(self, length: int, num_pages: int) -> int:
        if length > QUERY_TILE:
            return 1
        return max(1, SCRATCH_ELEMENTS // (num_pages * self._page_elements))

    def _segment(self, batch: ForwardBatch, spans: list[int], num_pages: int) -> _Segment:
        pool, count = self._pool, len(spans)
        spans.sort()
        rows = [batch.span_rows[span] for span in spans]
        # Beyond a span's last page its table row is stale: repeat that page, which holds this sequence's own KV.
        last_pages = np.array([(batch.span_kv_ends[span] - 1) // pool.page_size for span in spans])
        columns = self._columns(spans, np.minimum(np.arange(num_pages), last_pages[:, None]))
        pages = to_device(pool.host_page_table[np.array(rows)[:, None], columns].ravel(), pool.device)
        key_pages, value_pages = (
            buffer[: pages.numel() * self._page_elements].view(pages.numel(), -1) for buffer in self._scratch
        )
        shape = (count, num_pages * pool.page_size, pool.num_kv_heads, pool.head_dim)
        keys, values = (x.view(shape).transpose(1, 2) for x in (key_pages, value_pages))
        start, end = batch.span_offsets[spans[0]], batch.span_offsets[spans[-1] + 1]
        length = batch.span_offsets[spans[0] + 1] - start
        if length > QUERY_TILE:
            tiles = self._query_tiles(batch, start, end, keys, values)
        elif end - start == count * length:
            tiles = [self._tile(batch, slice(start, end), keys, values)]
        else:
            starts = np.array([batch.span_offsets[span] for span in spans])
            tiles = [self._tile(batch, (starts[:, None] + np.arange(length)).ravel(), keys, values)]
        return _Segment(pages, key_pages, value_pages, tiles)

    def _query_tiles(
        self, batch: ForwardBatch, start: int, end: int, keys: torch.Tensor, values: torch.Tensor
    ) -> list[_Tile]:
        """Tiles of one long span, each with no more keys than its queries see."""
        slices = [slice(first, min(first + QUERY_TILE, end)) for first in range(start, end, QUERY_TILE)]
        limits = [int(batch.host_kv_limits[rows].max()) for rows in slices]
        # Whole pages: kernels are quicker on even lengths.
        lengths = [-(-limit // self._pool.page_size) * self._pool.page_size for limit in limits]
        return [
            self._tile(batch, rows, keys[:, :, :length], values[:, :, :length])
            for rows, length in zip(slices, lengths, strict=True)
        ]

    def _tile(self, batch: ForwardBatch, rows: slice | np.ndarray, keys: torch.Tensor, values: torch.Tensor) -> _Tile:
        count, _, kv_length, _ = keys.shape
        on_host = batch.host_kv_limits[rows].reshape(count, -1)
        where = rows if isinstance(rows, slice) else to_device(rows, self._pool.device)
        mask = torch.where(self._sees(batch, where, on_host, self._places[:kv_length]), self._visible, self._hidden)
        return _Tile(where, mask, keys, values)

    def _columns(self, spans: list[int], columns: np.ndarray) -> np.ndarray:
        """[n, pages] int64: the columns of the page table that are gathered for spans, of those from column 0 on."""
        return columns

    def _sees(
        self, batch: ForwardBatch, where: slice | torch.Tensor, on_host: np.ndarray, places: torch.Tensor
    ) -> torch.Tensor:
        """Whether a token sees a gathered key, in the shape of a tile's mask. where: the tile's tokens; on_host: their
        limits, [n, q]; places: those of the keys among what is gathered, [kv]."""
        return self._per_row(batch.kv_limits[where], on_host) > places

    def _per_row(self, values: torch.Tensor, on_host: np.ndarray) -> torch.Tensor:
        """[n, 1, rows, 1]: a value a token [n * q] for the rows of a tile's mask; see _Tile."""
        values = values.view(len(on_host), 1, -1, 1)
        if on_host.shape[1] > 1:
            if (on_host == on_host[:, :1]).all():
                # Blocks that see themselves whole: one mask row a span, broadcast, is quicker to build and to read.
                return values[:, :, :1]
            if len(on_host) > 1 or on_host.shape[1] < WIDE_SPAN:
                return values.repeat_interleave(self._group, dim=2)
        return values

    def _new_scratch(self, elements: int) -> torch.Tensor:
        """[2, elements]: gathered K and gathered V."""
        # Not an inference tensor: one of those could be written in inference mode only, and this outlives the mode.
        with torch.inference_mode(False):
            return torch.empty((2, elements), dtype=self._pool.dtype, device=self._pool.device)
