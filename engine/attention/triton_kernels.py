"""Triton kernels of paged attention: one tile of queries against one stretch of context, and the merging of stretches.

The softmax is computed online (Milakov and Gimelshein 2018); splitting the context where queries are few is
Flash-Decoding (Dao et al. 2023). Only what Triton has had for long is used: no descriptors, no block pointers.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def attend_tiles(
    q_ptr,  # [T, num_heads, HEAD_DIM], contiguous within a head
    k_ptr,  # [num_slots, num_kv_heads, HEAD_DIM], contiguous: one layer of the pool
    v_ptr,  # like k
    out_ptr,  # [splits, T, num_heads, HEAD_DIM], contiguous: of q's type without splits, else float32
    lse_ptr,  # [splits, T, num_heads] float32: log2 of each split's sum of weights; unused without splits
    tiles_ptr,  # [num_tiles, 3] int32: first query token, number of query tokens, row of the page table
    limits_ptr,  # [T] int64: query token t sees positions [0, limit)
    table_ptr,  # [rows, TABLE_STRIDE] int64: pages of a row, by position
    scale,  # of the scores, times log2(e)
    num_tokens,  # T
    split_length,  # KV positions of a split, a multiple of BLOCK_KV
    q_token_stride,
    q_head_stride,
    TABLE_STRIDE: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    SPLIT: tl.constexpr,
    WIDEN: tl.constexpr,  # multiply in float32: Triton's interpreter takes bfloat16 factors of a dot for integers
):
    """Program (tile, kv_head, split). A tile's rows are its query tokens times the GROUP heads that share a KV head."""
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    first = tl.load(tiles_ptr + tile * 3)
    count = tl.load(tiles_ptr + tile * 3 + 1)
    table = table_ptr + tl.load(tiles_ptr + tile * 3 + 2).to(tl.int64) * TABLE_STRIDE

    rows = tl.arange(0, BLOCK_ROWS)
    dims = tl.arange(0, HEAD_DIM)
    in_tile = rows < count * GROUP
    tokens = (first + rows // GROUP).to(tl.int64)
    heads = kv_head * GROUP + rows % GROUP
    q_at = tokens[:, None] * q_token_stride + heads[:, None] * q_head_stride + dims[None, :]
    q = tl.load(q_ptr + q_at, mask=in_tile[:, None], other=0.0)
    if WIDEN:
        q = q.to(tl.float32)
    limits = tl.load(limits_ptr + tokens, mask=in_tile, other=0).to(tl.int32)

    start = split * split_length
    end = tl.minimum(start + split_length, tl.max(limits, 0))
    highest = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    mixed = tl.zeros([BLOCK_ROWS, HEAD_DIM], tl.float32)
    for at in range(start, end, BLOCK_KV):
        places = at + tl.arange(0, BLOCK_KV)
        # Past the tile's last visible position the page table is stale, so nothing there may be read.
        inside = places < end
        pages = tl.load(table + places // PAGE_SIZE, mask=inside, other=0)
        slots = pages * PAGE_SIZE + places % PAGE_SIZE
        kv_at = (slots * NUM_KV_HEADS + kv_head) * HEAD_DIM
        k = tl.load(k_ptr + kv_at[None, :] + dims[:, None], mask=inside[None, :], other=0.0)
        if WIDEN:
            k = k.to(tl.float32)
        scores = tl.dot(q, k, input_precision="ieee") * scale
        scores = tl.where(places[None, :] < limits[:, None], scores, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        # A row that has seen nothing yet must not subtract -inf from -inf.
        reference = tl.where(new_highest == float("-inf"), 0.0, new_highest)
        weights = tl.exp2(scores - reference[:, None])
        fading = tl.exp2(highest - reference)
        total = total * fading + tl.sum(weights, 1)
        v = tl.load(v_ptr + kv_at[:, None] + dims[None, :], mask=inside[:, None], other=0.0)
        shares = weights.to(v.dtype)
        if WIDEN:
            shares, v = shares.to(tl.float32), v.to(tl.float32)
        mixed = mixed * fading[:, None] + tl.dot(shares, v, input_precision="ieee")
        highest = new_highest

    # Rows that saw nothing in this split: 0 here, and -inf below so that the merge gives them no weight.
    filled = tl.where(total == 0.0, 1.0, total)
    mixed = mixed / filled[:, None]
    head_rows = (split.to(tl.int64) * num_tokens + tokens) * (NUM_KV_HEADS * GROUP) + heads
    out_at = head_rows[:, None] * HEAD_DIM + dims[None, :]
    tl.store(out_ptr + out_at, mixed.to(out_ptr.dtype.element_ty), mask=in_tile[:, None])
    if SPLIT:
        tl.store(lse_ptr + head_rows, highest + tl.log2(filled), mask=in_tile)


@triton.jit
def merge_splits(
    parts_ptr,  # [num_splits, num_rows, HEAD_DIM] float32, where a row is one head of one query token
    lse_ptr,  # [num_splits, num_rows] float32
    out_ptr,  # [num_rows, HEAD_DIM]
    num_rows,
    num_splits,
    HEAD_DIM: tl.constexpr,
):
    """Program (row): the splits' results, weighted by their shares of the softmax."""
    row = tl.program_id(0).to(tl.int64)
    dims = tl.arange(0, HEAD_DIM)
    # The first split holds position 0, which every query sees: its weight is never log2(0).
    highest = tl.load(lse_ptr + row)
    total = highest * 0.0 + 1.0
    mixed = tl.load(parts_ptr + row * HEAD_DIM + dims)
    for split in range(1, num_splits):
        at = row + split * num_rows
        lse = tl.load(lse_ptr + at)
        new_highest = tl.maximum(highest, lse)
        fading, weight = tl.exp2(highest - new_highest), tl.exp2(lse - new_highest)
        mixed = mixed * fading + tl.load(parts_ptr + at * HEAD_DIM + dims) * weight
        total = total * fading + weight
        highest = new_highest
    tl.store(out_ptr + row * HEAD_DIM + dims, (mixed / total).to(out_ptr.dtype.element_ty))
