"""Triton kernels of paged attention: one tile of queries against one stretch of context, and the merging of stretches.

The softmax is computed online (Milakov and Gimelshein 2018); splitting the context where queries are few is
Flash-Decoding (Dao et al. 2023). Only what Triton has had for long is used: no descriptors, no block pointers.

Everything that differs from pass to pass is read from the device, so that a captured launch serves other passes too:
tiles beyond those in use have no tokens, and splits beyond those in use do nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_tokens", "table_stride"], do_not_specialize_on_alignment=["limits_ptr"])
def attend_tiles(
    q_ptr,  # [T, num_heads, HEAD_DIM], contiguous within a head
    k_ptr,  # [num_slots, num_kv_heads, HEAD_DIM], contiguous: one layer of the pool
    v_ptr,  # like k
    out_ptr,  # [splits, T, num_heads, HEAD_DIM], contiguous: of q's type without splits, else float32
    lse_ptr,  # [splits, T, num_heads] float32: log2 of each split's sum of weights; unused without splits
    layout_ptr,  # [1 + num_tiles, 3] int32: KV positions of a split (a multiple of BLOCK_KV), splits in use, nothing;
    # then of each tile its first query token, number of query tokens, row of the page table
    limits_ptr,  # [T] int64: query token t sees positions [0, limit)
    table_ptr,  # [rows, table_stride] int64: pages of a row, by position
    scale,  # of the scores, times log2(e)
    num_tokens,  # T
    table_stride,  # of a row
    q_token_stride,
    q_head_stride,
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
    split_length = tl.load(layout_ptr)
    first = tl.load(layout_ptr + tile * 3 + 3)
    count = tl.load(layout_ptr + tile * 3 + 4)
    table = table_ptr + tl.load(layout_ptr + tile * 3 + 5).to(tl.int64) * table_stride
    if (count == 0) | (split >= tl.load(layout_ptr + 1)):
        return

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


@triton.jit(do_not_specialize=["num_rows"])
def merge_splits(
    parts_ptr,  # [splits, num_rows, HEAD_DIM] float32, where a row is one head of one query token
    lse_ptr,  # [splits, num_rows] float32
    out_ptr,  # [num_rows, HEAD_DIM]
    layout_ptr,  # as above
    num_rows,
    HEAD_DIM: tl.constexpr,
    SPLITS: tl.constexpr,  # at least the splits in use, a power of two: all are loaded at once, not one after another
):
    """Program (row): the splits' results, weighted by their shares of the softmax."""
    row = tl.program_id(0).to(tl.int64)
    splits = tl.arange(0, SPLITS)
    dims = tl.arange(0, HEAD_DIM)
    used = splits < tl.load(layout_ptr + 1)
    at = row + splits.to(tl.int64) * num_rows
    lse = tl.load(lse_ptr + at, mask=used, other=float("-inf"))
    # The first split holds position 0, which every query sees: the highest is never -inf.
    weights = tl.exp2(lse - tl.max(lse, 0))
    parts = tl.load(parts_ptr + at[:, None] * HEAD_DIM + dims[None, :], mask=used[:, None], other=0.0)
    mixed = tl.sum(parts * weights[:, None], 0) / tl.sum(weights, 0)
    tl.store(out_ptr + row * HEAD_DIM + dims, mixed.to(out_ptr.dtype.element_ty))


@triton.jit(do_not_specialize_on_alignment=["slots_ptr"])
def store_kv(
    k_ptr,  # [T, num_kv_heads, HEAD_DIM], contiguous within a token
    v_ptr,  # like k
    stored_k_ptr,  # [num_slots, num_kv_heads, HEAD_DIM], contiguous: one layer of the pool
    stored_v_ptr,  # like stored_k
    slots_ptr,  # [T] int64
    k_token_stride,
    v_token_stride,
    TOKEN_SIZE: tl.constexpr,  # num_kv_heads * HEAD_DIM
    BLOCK: tl.constexpr,  # at least TOKEN_SIZE, a power of two
):
    """Program (token): writes K and V of a query token to its slot."""
    token = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, BLOCK)
    inside = places < TOKEN_SIZE
    at = tl.load(slots_ptr + token) * TOKEN_SIZE + places
    tl.store(stored_k_ptr + at, tl.load(k_ptr + token * k_token_stride + places, mask=inside), mask=inside)
    tl.store(stored_v_ptr + at, tl.load(v_ptr + token * v_token_stride + places, mask=inside), mask=inside)
