"""Triton kernels of the decoder's elementwise work; their callers are in engine.gpu.elementwise."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize_on_alignment=["scale_ptr"])
def rotate_rows(
    qk_ptr,  # [T, ALL_HEADS, 2 * HALF], contiguous within a head: overwritten
    cos_ptr,  # [T, 1, 2 * HALF], contiguous within a row
    sin_ptr,  # like cos, the first half negated
    scale_ptr,  # [T] of the queries; unused unless SCALED
    token_stride,
    head_stride,
    table_stride,  # of cos and of sin, from token to token
    NUM_HEADS: tl.constexpr,  # query heads, which come first
    ALL_HEADS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,  # at least ALL_HEADS, a power of two
    HALF: tl.constexpr,  # of a head's size, a power of two
    SCALED: tl.constexpr,
):
    """Program (token): turns every head by the token's angles, and scales the query heads."""
    token = tl.program_id(0).to(tl.int64)
    heads, dims = tl.arange(0, BLOCK_HEADS), tl.arange(0, HALF)
    inside = (heads < ALL_HEADS)[:, None]
    at = qk_ptr + token * token_stride + heads[:, None] * head_stride + dims[None, :]
    low = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    angle = token * table_stride + dims
    cos_low, cos_high = tl.load(cos_ptr + angle).to(tl.float32), tl.load(cos_ptr + angle + HALF).to(tl.float32)
    sin_low, sin_high = tl.load(sin_ptr + angle).to(tl.float32), tl.load(sin_ptr + angle + HALF).to(tl.float32)
    turned_low = low * cos_low[None, :] + high * sin_low[None, :]
    turned_high = high * cos_high[None, :] + low * sin_high[None, :]
    if SCALED:
        scale = tl.where(heads < NUM_HEADS, tl.load(scale_ptr + token).to(tl.float32), 1.0)[:, None]
        turned_low, turned_high = turned_low * scale, turned_high * scale
    tl.store(at, turned_low.to(qk_ptr.dtype.element_ty), mask=inside)
    tl.store(at + HALF, turned_high.to(qk_ptr.dtype.element_ty), mask=inside)


@triton.jit
def silu_mul_rows(
    gate_up_ptr,  # [T, 2 * SIZE], contiguous within a row
    out_ptr,  # [T, SIZE], contiguous
    token_stride,  # of gate_up
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (token, block): silu(gate) * up."""
    token = tl.program_id(0).to(tl.int64)
    places = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = places < SIZE
    gate = tl.load(gate_up_ptr + token * token_stride + places, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + token * token_stride + SIZE + places, mask=inside, other=0.0).to(tl.float32)
    # As transformers computes it: the activation is rounded to the model's type before it is multiplied.
    active = (gate / (1.0 + tl.exp(-gate))).to(gate_up_ptr.dtype.element_ty).to(tl.float32)
    tl.store(out_ptr + token * SIZE + places, (active * up).to(out_ptr.dtype.element_ty), mask=inside)
