"""PackedLinear: a matrix in the order that the processor's own products read it, through oneDNN.

torch ships these operations for its compiler. They have no public name, so `is_exact` asks whether they are here and
right before they are used; DenseLinear is what remains.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F

from engine.models.linear.gathered import GatheredLinear

PACKED_DTYPES = (torch.float32, torch.bfloat16)
"""Types that processors multiply packed. float16 is slower by far; float64 is not there."""


class PackedLinear(GatheredLinear):
    """A matrix on a CPU in the model's dtype, reordered once by oneDNN, which takes a third to a fifth of the time over
    products of several rows."""

    _packed: torch.Tensor

    def convert(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See GatheredLinear."""
        return (rows.to(self.dtype),)

    def store(self, tensors: Sequence[torch.Tensor]) -> None:
        """See GatheredLinear."""
        self._packed = torch.ops.mkldnn._reorder_linear_weight(tensors[0].contiguous())

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """See GatheredLinear."""
        return multiply_packed(x, self._packed)

    @property
    def num_bytes(self) -> int:
        """See Linear."""
        return self.outputs * self.inputs * self.dtype.itemsize + self.bias_bytes


def multiply_packed(x: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    """x: [T, inputs]; packed: a reordered [outputs, inputs]. Returns [T, outputs]."""
    y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    return y


@cache
def is_exact(dtype: torch.dtype) -> bool:
    """Whether packed products of this type are here, and as near to the true product as torch's own are."""
    if dtype not in PACKED_DTYPES or not torch._C._has_mkldnn:
        return False
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(shape, generator=generator).to(dtype) for shape in ((48, 160), (33, 160)))
    try:
        product = multiply_packed(x, torch.ops.mkldnn._reorder_linear_weight(weight))
    except (AttributeError, RuntimeError):
        return False
    true = x.double() @ weight.double().t()
    error, accepted = ((y.double() - true).abs().max() for y in (product, F.linear(x, weight)))
    return product.dtype == dtype and float(error) <= 4 * float(accepted)
