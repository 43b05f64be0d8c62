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
        # None: torch has a kernel of its own. On a CPU it has none: its composition takes a third longer than this one
        # at a few rows, and ten times as long at hundreds, where each of its copies is fresh memory.
        self._computed = torch.promote_types(dtype, torch.float32)
        self._added = torch.tensor(eps, dtype=self._computed) if device.type == "cpu" else None

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """x / sqrt(mean of its squares + eps) * weight, over the last dimension; half types are computed in float32."""
        if self._added is None:
            return F.rms_norm(x, weight.shape, weight, self._eps)
        if x.dtype != self._computed:
            wide = x.to(self._computed)
            return wide.mul_(self._scale(wide, self._added)).mul_(weight).to(x.dtype)
        return (x * self._scale(x, self._added)).mul_(weight)

    @staticmethod
    def _scale(x: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return torch.addcmul(eps, norm, norm, value=1.0 / x.shape[-1]).rsqrt_()

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

    def gelu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """gelu(gate) * up, with GELU's approximation by tanh. gate_up, and what is returned: as in silu_mul."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.gelu(gate, approximate="tanh").mul_(up)
