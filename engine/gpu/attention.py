"""Paged attention on a GPU: one Triton kernel reads K and V where they lie, for any mix of phases.

Needs Triton (`pip install lightcone[triton]`; CUDA builds of torch bring it): engine.runner.kernels imports this
module only where it is asked for.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import triton

from engine.attention.base import CapturableAttention, TileCounts, Tiles
from engine.attention.packed_pass import ForwardBatch, PackedPass
from engine.device.transfer import to_device
from engine.gpu.attention_kernels import attend_tiles, merge_splits, store_kv
from engine.kv_cache.pool import KVCachePool

HEAD_DIMS = (32, 64, 128)
MIN_SPLIT = 256
"""Fewest KV positions of a split: below, merging costs more than the parallelism brings."""
MAX_SPLITS = 64
"""Splits that a merging program can load at once."""
INTERPRETER_PROGRAMS = 32
"""Programs to aim at in Triton's interpreter, where there is no GPU to ask."""


class TileShape(NamedTuple):
    """Settings of the kernel: how a program reads the KV positions of its tile."""

    block_kv: int
    """KV positions read at a time."""
    num_warps: int
    num_stages: int = 3
    """Depth of the software pipeline: the page table is read a stage before K and V are."""


TILE_SHAPES = {
    2: {16: TileShape(64, 4), 32: TileShape(64, 4), 64: TileShape(64, 4), 128: TileShape(64, 8)},
    4: {16: TileShape(16, 4)},
}
"""By bytes of an element, then by rows of a tile (query tokens times heads of a group), ascending: shapes whose
registers do not spill (tests/engine/gpu/test_compiled_kernels.py). Tensor cores multiply no fewer than 16 rows; float32
products use no tensor cores and many registers."""


class TritonAttention(CapturableAttention):
    """Cuts every span into tiles of query tokens and, where those are too few to fill the GPU, the context into splits.

    The host decides tiles and splits from the spans' lengths alone; they, what a token sees (`kv_limits`) and where it
    lies (the page table) are read on the device, so that a launch can be captured (engine.gpu.graphs).
    """

    def __init__(
        self,
        pool: KVCachePool,
        num_heads: int,
        *,
        programs: int | None = None,
        shapes: dict[int, TileShape] | None = None,
    ) -> None:
        """programs: split the context until a pass has about as many. None: two for each of the GPU's processors.
        shapes: tiles to use, by their rows. None: TILE_SHAPES.

        Raises ValueError for heads, head sizes, page sizes or types that the kernel does not know.
        """
        if num_heads % pool.num_kv_heads:
            raise ValueError(f"{num_heads} query heads cannot share {pool.num_kv_heads} KV heads evenly")
        if pool.head_dim not in HEAD_DIMS:
            raise ValueError(f"the triton backend has no kernel for heads of {pool.head_dim}, only of {HEAD_DIMS}")
        if pool.dtype not in (torch.bfloat16, torch.float16, torch.float32):
            raise ValueError(f"the triton backend has no kernel for {pool.dtype}")
        if pool.page_size & (pool.page_size - 1):
            raise ValueError(f"the triton backend needs a page size that is a power of two, not {pool.page_size}")
        self._pool = pool
        self._num_heads = num_heads
        self._group = num_heads // pool.num_kv_heads
        self._shapes = shapes or TILE_SHAPES[pool.dtype.itemsize]
        if self._group > max(self._shapes):
            raise ValueError(
                f"the triton backend takes at most {max(self._shapes)} query heads a KV head in {pool.dtype}, "
                f"not {self._group}"
            )
        self._scale = math.log2(math.e) / math.sqrt(pool.head_dim)
        self._programs = programs or _programs_of(pool.device)
        self._slots = self._limits = torch.empty(0, dtype=torch.int64, device=pool.device)
        self._layout = torch.empty((0, 3), dtype=torch.int32, device=pool.device)
        self._block_rows, self._num_splits = min(self._shapes), 1

    def warm_up(self) -> None:
        """Compiles every variant: a compilation while requests are served would hold them all up. Call it before any
        request is served: it writes to the pool's first slot."""
        pool = self._pool
        slots = torch.zeros(1, dtype=torch.int64, device=pool.device)
        layout = torch.zeros((2, 3), dtype=torch.int32, device=pool.device)  # one tile, of no tokens
        q, k = (torch.zeros((1, n, pool.head_dim), dtype=pool.dtype, device=pool.device)
                for n in (self._num_heads, pool.num_kv_heads))  # fmt: skip
        for rows in self._shapes:
            for num_splits in (1, 2):
                self._use(slots, slots, layout, rows, num_splits)
                self.forward(q, k, k, 0)

    def prepare(self, batch: ForwardBatch) -> None:
        """Lays out tiles and splits; one small transfer to the device."""
        tiles = self.tiles(batch)
        layout = self.layout(tiles, len(tiles.rows))
        device_layout = to_device(layout, self._pool.device)
        self._use(batch.slots, batch.kv_limits, device_layout, tiles.block_rows, int(layout[0, 1]))

    def prepare_capture(self, batch: ForwardBatch, counts: TileCounts) -> torch.Tensor:
        """See CapturableAttention."""
        num_tiles, block_rows = counts
        layout = torch.zeros((1 + num_tiles, 3), dtype=torch.int32, device=self._pool.device)
        layout[0] = 1
        self._use(batch.slots, batch.kv_limits, layout, block_rows, self._most_splits(num_tiles))
        return layout

    def capture_counts(self, num_tokens: int) -> tuple[list[TileCounts], list[TileCounts]]:
        """See CapturableAttention. Spans of one width fill their tiles at least by half."""
        fewest = self._block_rows_for(1)
        alike, mixed = [], []
        for block_rows in self._shapes:
            if not fewest <= block_rows <= self._block_rows_for(num_tokens):
                continue  # no span of such a pass calls for these tiles
            holds = block_rows // self._group
            few = num_tokens if block_rows == fewest else min(num_tokens, -(-2 * num_tokens // holds))
            alike.append(TileCounts(few, block_rows))
            if few < num_tokens:
                mixed.append(TileCounts(num_tokens, block_rows))
        return alike, mixed

    def tiles(self, batch: ForwardBatch | PackedPass) -> Tiles:
        """See CapturableAttention."""
        lengths = [end - start for start, end in zip(batch.span_offsets, batch.span_offsets[1:], strict=False)]
        block_rows = self._block_rows_for(max(lengths))
        step = block_rows // self._group
        rows = [
            (start + done, min(step, length - done), row)
            for start, length, row in zip(batch.span_offsets, lengths, batch.span_rows, strict=False)
            for done in range(0, length, step)
        ]
        return Tiles(rows, block_rows, max(batch.span_kv_ends))

    def _block_rows_for(self, length: int) -> int:
        """Rows of the tiles of a pass whose longest span has `length` query tokens."""
        wanted = int(triton.next_power_of_2(length * self._group))
        return next((rows for rows in self._shapes if rows >= wanted), max(self._shapes))

    def _most_splits(self, num_tiles: int) -> int:
        """Splits of the context in a pass of so many tiles, at most."""
        return min(-(-self._programs // (num_tiles * self._pool.num_kv_heads)), MAX_SPLITS)

    def layout(self, tiles: Tiles, room: int) -> np.ndarray:
        """See CapturableAttention. [1 + room, 3] int32, see attention_kernels; the context is split as for `room`
        tiles."""
        layout = np.zeros((1 + room, 3), dtype=np.int32)
        layout[1 : 1 + len(tiles.rows)] = tiles.rows
        length = max(-(-tiles.longest // self._most_splits(room)), MIN_SPLIT)
        block_kv = self._shapes[tiles.block_rows].block_kv
        length = -(-length // block_kv) * block_kv
        layout[0, :2] = length, -(-tiles.longest // length)
        return layout

    def _use(
        self, slots: torch.Tensor, limits: torch.Tensor, layout: torch.Tensor, block_rows: int, num_splits: int
    ) -> None:
        """Sets what `forward` reads from now on. slots, limits: [T] int64 and layout, all on the device; block_rows: of
        the tiles; num_splits: splits to start programs for, no fewer than the layout uses."""
        self._slots, self._limits, self._layout = slots, limits, layout
        self._block_rows, self._num_splits = block_rows, num_splits

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int) -> torch.Tensor:
        """See AttentionBackend. All K and V are written before any is read, so spans of one sequence see each other."""
        pool, splits, shape = self._pool, self._num_splits, self._shapes[self._block_rows]
        self._store(k, v, layer)
        if q.stride(2) != 1:
            q = q.contiguous()
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        parts, lse = out, out
        if splits > 1:
            parts = torch.empty((splits, *q.shape), dtype=torch.float32, device=q.device)
            lse = torch.empty(parts.shape[:3], dtype=torch.float32, device=q.device)
        attend_tiles[(len(self._layout) - 1, pool.num_kv_heads, splits)](
            q, pool.k[layer], pool.v[layer], parts, lse, self._layout, self._limits, pool.page_table,
            self._scale, q.shape[0], pool.page_table.stride(0), q.stride(0), q.stride(1),
            NUM_KV_HEADS=pool.num_kv_heads, GROUP=self._group, HEAD_DIM=pool.head_dim, PAGE_SIZE=pool.page_size,
            BLOCK_ROWS=self._block_rows, BLOCK_KV=shape.block_kv, SPLIT=splits > 1, WIDEN=pool.device.type != "cuda",
            num_warps=shape.num_warps, num_stages=shape.num_stages,
        )  # fmt: skip
        if splits > 1:
            num_rows = q.shape[0] * q.shape[1]
            merge_splits[(num_rows,)](
                parts, lse, out, self._layout, num_rows, HEAD_DIM=pool.head_dim, SPLITS=MAX_SPLITS
            )
        return out

    def _store(self, k: torch.Tensor, v: torch.Tensor, layer: int) -> None:
        pool = self._pool
        token_size = pool.num_kv_heads * pool.head_dim
        k, v = (x if x.stride()[1:] == (pool.head_dim, 1) else x.contiguous() for x in (k, v))
        store_kv[(k.shape[0],)](
            k, v, pool.k[layer], pool.v[layer], self._slots, k.stride(0), v.stride(0),
            TOKEN_SIZE=token_size, BLOCK=triton.next_power_of_2(token_size),
        )  # fmt: skip


def _programs_of(device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETER_PROGRAMS
    return 2 * int(torch.cuda.get_device_properties(device).multi_processor_count)
