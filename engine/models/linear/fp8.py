"""Fp8Linear: weights of float8 by output channel, activations of float8 by row, through torch's scaled product.

For NVIDIA GPUs from compute capability 8.9. A row's scale is its own: its result depends on that row alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from engine.models.linear.gathered import GatheredLinear
from engine.models.linear.quantized_weight import SMALLEST_SCALE, QuantizedWeight

FP8 = torch.float8_e4m3fn
LARGEST = 448.0
"""The largest number of float8_e4m3fn."""
MULTIPLE = 16
"""Of which inputs and outputs must be a multiple."""


class Fp8Linear(GatheredLinear):
    """A matrix of float8_e4m3fn. Products are summed in float32 and rounded to bfloat16."""

    _transposed: torch.Tensor
    _scales: torch.Tensor

    def __init__(
        self, parts: Mapping[str, int], inputs: int, dtype: torch.dtype, device: torch.device, bias: bool = False
    ) -> None:
        """Raises ValueError for a shape that the product does not take."""
        super().__init__(parts, inputs, dtype, device, bias)
        for name, size in (("inputs", inputs), ("outputs", self.outputs)):
            if size % MULTIPLE:
                raise ValueError(f"fp8 needs {name} that are a multiple of {MULTIPLE}, not {size}")

    def convert(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See GatheredLinear."""
        return to_fp8(rows)

    def keep(self, weight: QuantizedWeight) -> tuple[torch.Tensor, ...] | None:
        """See GatheredLinear."""
        if weight.values.dtype != FP8 or weight.group_size is not None or weight.zeros is not None:
            return None
        return weight.values.to(self.device), weight.scales.float().to(self.device)

    def store(self, tensors: Sequence[torch.Tensor]) -> None:
        """See GatheredLinear."""
        values, scales = tensors
        self._transposed = values.contiguous().t()
        self._scales = scales.reshape(1, -1).contiguous()

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """See GatheredLinear."""
        rows, scales = to_fp8(x)
        y = torch._scaled_mm(rows, self._transposed, scale_a=scales, scale_b=self._scales, out_dtype=torch.bfloat16)
        return y.to(x.dtype)

    @property
    def num_bytes(self) -> int:
        """See Linear."""
        return self.outputs * (self.inputs + 4) + self.bias_bytes


def to_fp8(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as float8 with a scale each: [n, inputs], [n, 1] float32."""
    rows = rows.float()
    scales = rows.abs().amax(dim=1, keepdim=True).div_(LARGEST).clamp_(min=SMALLEST_SCALE)
    return (rows / scales).to(FP8), scales
