"""The decoder's operations between its matrix products: norms, rotation, activation. The reference, on any device."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from engine.models.rope import Rotation


class Elementwise:
    """torch's own operations. Kernels of a device may do each of these in one launch; see engine.gpu.elementwise."""

    def __init__(self, eps: float, dtype: torch.dtype, device: torch.device) -> None:
        """eps: added to the mean of squares."""
        self._eps = eps
        # None: torch has a kernel of its own. On a CPU it has none that computes in the type itself.
        composed = device.type == "cpu" and dtype.itemsize >= 4
        self._added = torch.tensor(eps, dtype=dtype) if composed else None

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """x / sqrt(mean of its squares + eps) * weight, over the last dimension; half types are computed in float32."""
        if self._added is None:
            return F.rms_norm(x, weight.shape, weight, self._eps)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = torch.addcmul(self._added, norm, norm, value=1.0 / x.shape[-1]).rsqrt_()
        return (x * scale).mul_(weight)

    def rotate(self, qk: torch.Tensor, num_heads: int, rotation: Rotation) -> tuple[torch.Tensor, torch.Tensor]:
        """qk: [T, num_heads + num_kv_heads, head_dim], free to be overwritten. Returns q, rotated and scaled, and k,
        rotated: [T, num_heads, head_dim] and [T, num_kv_heads, head_dim]; both may be strided views."""
        qk = torch.addcmul(qk * rotation.cos, qk.roll(qk.shape[-1] // 2, -1), rotation.sin)
        q, k = qk.split_with_sizes((num_heads, qk.shape[1] - num_heads), dim=1)
        if rotation.query_scale is not None:
            q = q * rotation.query_scale
        return q, k

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up. gate_up: [T, 2 * intermediate_size]. Returns [T, intermediate_size]."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)
