"""Weights of 8 or 4 bits with activations of bfloat16, through torch's own products. On a CPU.

They read fewer bytes, and compute no faster: quick for a row or a few, slower than the float product for a hundred. At
rows of float32 torch's products are slow beyond use, so activations are rounded to bfloat16 on the way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

from engine.models.linear.gathered import GatheredLinear
from engine.models.linear.int8 import keep_channels
from engine.models.linear.quantized_weight import QuantizedWeight, by_channel, by_group

INPUTS_OF_INT8 = 16
OUTPUTS_OF_INT4 = 16
"""What torch's products demand the inputs or outputs to be a multiple of. (They read beyond the matrix otherwise.)"""


class Int8WeightLinear(GatheredLinear):
    """A matrix of int8 with a scale an output channel; products are of bfloat16."""

    _values: torch.Tensor
    _scales: torch.Tensor

    def __init__(
        self, parts: Mapping[str, int], inputs: int, dtype: torch.dtype, device: torch.device, bias: bool = False
    ) -> None:
        """Raises ValueError for a shape that the product does not take."""
        if inputs % INPUTS_OF_INT8:
            raise ValueError(f"int8-weights need inputs that are a multiple of {INPUTS_OF_INT8}, not {inputs}")
        super().__init__(parts, inputs, dtype, device, bias)

    def convert(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See GatheredLinear."""
        weight = by_channel(rows)
        return weight.values, weight.scales

    def keep(self, weight: QuantizedWeight) -> tuple[torch.Tensor, ...] | None:
        """See GatheredLinear."""
        return keep_channels(weight)

    def store(self, tensors: Sequence[torch.Tensor]) -> None:
        """See GatheredLinear."""
        values, scales = tensors
        self._values = values.contiguous()
        self._scales = scales.flatten().bfloat16()

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """See GatheredLinear."""
        rows = x.bfloat16().contiguous()
        return torch.ops.aten._weight_int8pack_mm(rows, self._values, self._scales).to(x.dtype)  # type: ignore[no-any-return]

    @property
    def num_bytes(self) -> int:
        """See Linear."""
        return self.outputs * (self.inputs + 2) + self.bias_bytes


class Int4WeightLinear(GatheredLinear):
    """A matrix of 4-bit integers with a scale and a zero point for each group of a row; products are of bfloat16."""

    _packed: torch.Tensor
    _scales_and_zeros: torch.Tensor

    def __init__(
        self,
        parts: Mapping[str, int],
        inputs: int,
        dtype: torch.dtype,
        device: torch.device,
        bias: bool = False,
        *,
        group_size: int = 32,
    ) -> None:
        """group_size: inputs that share a scale: 32, 64 or 128. Raises ValueError where it does not divide them."""
        if inputs % group_size:
            raise ValueError(f"groups of {group_size} do not divide {inputs} inputs")
        super().__init__(parts, inputs, dtype, device, bias)
        self._group_size = group_size
        self._padding = -self.outputs % OUTPUTS_OF_INT4

    def convert(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See GatheredLinear."""
        return _quantities(by_group(rows, self._group_size))

    def keep(self, weight: QuantizedWeight) -> tuple[torch.Tensor, ...] | None:
        """See GatheredLinear. 4-bit integers in groups of this size, or of one that it divides."""
        if weight.values.dtype != torch.int8 or weight.bits != 4:
            return None
        values, scales, zeros = _quantities(weight)
        group = weight.group_size or self.inputs
        if group % self._group_size:
            return None
        repeats = group // self._group_size
        return values, scales.repeat_interleave(repeats, dim=1), zeros.repeat_interleave(repeats, dim=1)

    def store(self, tensors: Sequence[torch.Tensor]) -> None:
        """See GatheredLinear."""
        values, scales, zeros = (F.pad(tensor, (0, 0, 0, self._padding)) for tensor in tensors)
        # The product takes 0 to 15 and adds its zero point after scaling: (q - 8) * scale + zero.
        unsigned = values.to(torch.int32).add_(8)
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(unsigned, 1)
        self._scales_and_zeros = torch.stack((scales, zeros), dim=2).transpose(0, 1).contiguous().bfloat16()

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """See GatheredLinear."""
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x.bfloat16().contiguous(), self._packed, self._group_size, self._scales_and_zeros
        ).to(x.dtype)
        return y[:, : self.outputs] if self._padding else y  # type: ignore[no-any-return]

    @property
    def num_bytes(self) -> int:
        """See Linear."""
        groups = self.inputs // self._group_size
        return (self.outputs + self._padding) * (self.inputs // 2 + 4 * groups) + self.bias_bytes


def _quantities(weight: QuantizedWeight) -> tuple[torch.Tensor, ...]:
    """Values, scales, and what the zero points amount to after scaling."""
    scales = weight.scales.float()
    zeros = torch.zeros_like(scales) if weight.zeros is None else -weight.zeros.float() * scales
    return weight.values, scales, zeros
