"""DenseLinear: a matrix in the model's dtype, multiplied by torch's ordinary product. Any device, any dtype."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from engine.models.linear.base import Linear, Target, TensorTarget


class DenseLinear(Linear):
    """A matrix whose elements are stored as they are, in the model's dtype."""

    def __init__(self, parts: Mapping[str, int], weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """weight: [outputs, inputs]; bias: [outputs]."""
        super().__init__(parts, weight.shape[1])
        self.weight = weight
        self.bias = bias
        self._transposed = weight.t()

    @classmethod
    def empty(
        cls, parts: Mapping[str, int], inputs: int, dtype: torch.dtype, device: torch.device, bias: bool = False
    ) -> DenseLinear:
        """A matrix that is allocated and not initialised.

        On a CPU it is stored by columns: products of a few rows, the most of what decoding does, then take as little as
        half the time. GPU libraries are tuned for rows.
        """
        shape = (sum(parts.values()), inputs)
        if device.type == "cpu":
            weight = torch.empty(shape[::-1], dtype=dtype, device=device).t()
        else:
            weight = torch.empty(shape, dtype=dtype, device=device)
        return cls(parts, weight, torch.empty(shape[0], dtype=dtype, device=device) if bias else None)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See Linear."""
        return F.linear(x, self.weight, self.bias)

    def add_to(self, total: torch.Tensor, x: torch.Tensor) -> None:
        """See Linear."""
        total.addmm_(x, self._transposed)

    def targets(self) -> dict[str, Target]:
        """See Linear."""
        sizes = list(self.parts.values())
        found: dict[str, Target] = {
            f"{part}.weight": TensorTarget(rows)
            for part, rows in zip(self.parts, self.weight.split_with_sizes(sizes), strict=True)
        }
        if self.bias is not None:
            for part, rows in zip(self.parts, self.bias.split_with_sizes(sizes), strict=True):
                found[f"{part}.bias"] = TensorTarget(rows)
        return found

    @property
    def num_bytes(self) -> int:
        """See Linear."""
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)
