"""The decoder's elementwise work as Triton kernels: one launch each, where torch starts three or four.

Computed in float32, whatever the type; an activation is rounded to it before it multiplies. Needs Triton: imported only
where it is asked for.
"""

from __future__ import annotations

import torch
import triton

from engine.gpu.elementwise_kernels import rotate_rows, silu_mul_rows
from engine.models.elementwise import Elementwise
from engine.models.rope import Rotation

SILU_MUL_BLOCK = 1024


class TritonElementwise(Elementwise):
    """Norms stay torch's, which has a kernel for them on a GPU."""

    def rotate(self, qk: torch.Tensor, num_heads: int, rotation: Rotation) -> tuple[torch.Tensor, torch.Tensor]:
        """See Elementwise. In place."""
        if qk.stride(2) != 1:
            qk = qk.contiguous()
        tokens, heads, head_dim = qk.shape
        scale = rotation.query_scale
        rotate_rows[(tokens,)](
            qk, rotation.cos, rotation.sin, rotation.cos if scale is None else scale, qk.stride(0), qk.stride(1),
            rotation.cos.stride(0), NUM_HEADS=num_heads, ALL_HEADS=heads, BLOCK_HEADS=triton.next_power_of_2(heads),
            HALF=head_dim // 2, SCALED=scale is not None,
        )  # fmt: skip
        q, k = qk.split_with_sizes((num_heads, qk.shape[1] - num_heads), dim=1)
        return q, k

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """See Elementwise."""
        tokens, both = gate_up.shape
        size = both // 2
        out = torch.empty((tokens, size), dtype=gate_up.dtype, device=gate_up.device)
        silu_mul_rows[(tokens, triton.cdiv(size, SILU_MUL_BLOCK))](
            gate_up, out, gate_up.stride(0), SIZE=size, BLOCK=SILU_MUL_BLOCK
        )
        return out
