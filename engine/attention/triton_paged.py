"""Paged attention on a GPU: one Triton kernel reads K and V where they lie, for any mix of phases.

Needs Triton (`pip install lightcone[triton]`; CUDA builds of torch bring it): engine.attention.registry imports this
module only where it is asked for.
"""

from __future__ import annotations

import math

import torch
import triton

from engine.attention.base import AttentionBackend
from engine.attention.triton_kernels import attend_tiles, merge_splits
from engine.batch import ForwardBatch
from engine.kv_cache.pool import KVCachePool

HEAD_DIMS = (32, 64, 128)
MIN_ROWS = 16
"""Fewest rows that a matrix product on a GPU's tensor cores takes; smaller tiles are padded."""
MAX_ROWS = 128
"""Most rows of a tile (query tokens times heads of a group): more would not fit a processor's registers."""
BLOCK_KV = {2: 64, 4: 32}
"""KV positions read at a time, by bytes of an element."""
MIN_SPLIT = 256
"""Fewest KV positions of a split: below, merging costs more than the parallelism brings."""
INTERPRETER_PROGRAMS = 32
"""Programs to aim at where there is no GPU to ask: Triton's interpreter, which is for tests."""


class TritonAttention(AttentionBackend):
    """Cuts every span into tiles of query tokens and, where those are too few to fill the GPU, the context into splits.

    The host decides tiles and splits from the spans' lengths alone; what a token sees (`kv_limits`) and where it lies
    (the page table) is read on the device.
    """

    def __init__(self, pool: KVCachePool, num_heads: int, *, programs: int | None = None) -> None:
        """programs: split the context until a pass has about as many. None: two for each of the GPU's processors.

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
        if self._group > MAX_ROWS:
            raise ValueError(f"the triton backend takes at most {MAX_ROWS} query heads a KV head, not {self._group}")
        self._block_kv = BLOCK_KV[pool.dtype.itemsize]
        self._scale = math.log2(math.e) / math.sqrt(pool.head_dim)
        self._programs = programs or _programs_of(pool.device)
        self._slots = self._limits = torch.empty(0, dtype=torch.int64, device=pool.device)
        self._tiles = torch.empty((0, 3), dtype=torch.int32, device=pool.device)
        self._block_rows = MIN_ROWS
        self._num_splits = self._split_length = 1

    def prepare(self, batch: ForwardBatch) -> None:
        """Lays out tiles and splits; one small transfer to the device."""
        lengths = [end - start for start, end in zip(batch.span_offsets, batch.span_offsets[1:], strict=False)]
        rows = triton.next_power_of_2(max(lengths) * self._group)
        self._block_rows = min(max(rows, MIN_ROWS), MAX_ROWS)
        step = self._block_rows // self._group
        tiles = [
            (start + done, min(step, length - done), row)
            for start, length, row in zip(batch.span_offsets, lengths, batch.span_rows, strict=False)
            for done in range(0, length, step)
        ]
        self._tiles = torch.tensor(tiles, dtype=torch.int32).to(self._pool.device)
        self._slots, self._limits = batch.slots, batch.kv_limits
        self._choose_splits(len(tiles), max(batch.span_kv_ends))

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int) -> torch.Tensor:
        """See AttentionBackend. All K and V are written before any is read, so spans of one sequence see each other."""
        pool, splits = self._pool, self._num_splits
        pool.write(layer, self._slots, k, v)
        if q.stride(2) != 1:
            q = q.contiguous()
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        parts, lse = out, out
        if splits > 1:
            parts = torch.empty((splits, *q.shape), dtype=torch.float32, device=q.device)
            lse = torch.empty(parts.shape[:3], dtype=torch.float32, device=q.device)
        attend_tiles[(len(self._tiles), pool.num_kv_heads, splits)](
            q, pool.k[layer], pool.v[layer], parts, lse, self._tiles, self._limits, pool.page_table,
            self._scale, q.shape[0], self._split_length, q.stride(0), q.stride(1),
            TABLE_STRIDE=pool.page_table.stride(0), NUM_KV_HEADS=pool.num_kv_heads, GROUP=self._group,
            HEAD_DIM=pool.head_dim, PAGE_SIZE=pool.page_size, BLOCK_ROWS=self._block_rows, BLOCK_KV=self._block_kv,
            SPLIT=splits > 1, WIDEN=pool.device.type != "cuda",
        )  # fmt: skip
        if splits > 1:
            num_rows = q.shape[0] * q.shape[1]
            merge_splits[(num_rows,)](parts, lse, out, num_rows, splits, HEAD_DIM=pool.head_dim)
        return out

    def _choose_splits(self, num_tiles: int, longest: int) -> None:
        wanted = -(-self._programs // (num_tiles * self._pool.num_kv_heads))
        length = max(-(-longest // wanted), MIN_SPLIT)
        self._split_length = -(-length // self._block_kv) * self._block_kv
        self._num_splits = -(-longest // self._split_length)


def _programs_of(device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETER_PROGRAMS
    return 2 * int(torch.cuda.get_device_properties(device).multi_processor_count)
