"""Int8Linear: weights of 8 bits by output channel, activations of 8 bits by row (token), sums of integers. On a CPU.

A row's scale is its own, so its result depends on that row alone, bit for bit: sums of integers have no order.

Two products can do it, FBGEMM's and oneDNN's, both inside torch under names that are not public. On processors without
instructions for it (VNNI and its like) they add pairs of products in 16 bits, which silently saturate. So each is tried
on extremes against exact arithmetic before it is used, and with 7 bits of activations where 8 do not pass.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch

from engine.models.linear.gathered import GatheredLinear
from engine.models.linear.quantized_weight import SMALLEST_SCALE, QuantizedWeight, by_channel

ACCURATE = 1e-6
"""Share of the largest result that a product of integers may be off by: float32's rounding of its scaled sum."""
WIDE, NARROW = 127, 63
"""Steps of activations on either side of 0: 8 bits, and 7 where sums of pairs saturate otherwise."""


class IntegerProduct(ABC):
    """A matrix of int8 and its product with rows that are quantized on the way."""

    def __init__(self, values: torch.Tensor, scales: torch.Tensor, levels: int) -> None:
        """values: [outputs, inputs] int8; scales: [outputs] float32; levels: WIDE or NARROW."""
        self.levels = levels

    @abstractmethod
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, inputs] float32. Returns [T, outputs] float32."""


class FbgemmProduct(IntegerProduct):
    """Through FBGEMM: the quickest at few rows. x is brought to [-1, 1], which the product then quantizes itself."""

    def __init__(self, values: torch.Tensor, scales: torch.Tensor, levels: int) -> None:
        super().__init__(values, scales, levels)
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        with _quietly():
            weight = torch._make_per_channel_quantized_tensor(values, scales.double(), zeros, 0)
        self._packed = torch.ops.quantized.linear_prepack(weight, None)
        self._multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See IntegerProduct."""
        largest = x.abs().amax(dim=1, keepdim=True).clamp_(min=SMALLEST_SCALE)
        y: torch.Tensor = self._multiply(x / largest, 1 / self.levels, self.levels + 1, self._packed)
        return y.mul_(largest)


class OnednnProduct(IntegerProduct):
    """Through oneDNN, with unsigned activations around a zero point: signed ones run its reference code."""

    def __init__(self, values: torch.Tensor, scales: torch.Tensor, levels: int) -> None:
        super().__init__(values, scales, levels)
        self._packed = torch.ops.onednn.qlinear_prepack(values.contiguous(), None)
        self._scales = scales
        self._zeros = torch.zeros(len(scales), dtype=torch.int64)
        self._multiply = torch.ops.onednn.qlinear_pointwise.default

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See IntegerProduct."""
        steps = x.abs().amax(dim=1, keepdim=True).mul_(1 / self.levels).clamp_(min=SMALLEST_SCALE)
        centre = self.levels + 1
        quantized = (x / steps).round_().add_(centre).to(torch.uint8)
        y: torch.Tensor = self._multiply(
            quantized, 1.0, centre, self._packed, self._scales, self._zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return y.mul_(steps)


MakeProduct = Callable[[torch.Tensor, torch.Tensor, int], IntegerProduct]
CANDIDATES: Sequence[tuple[MakeProduct, int]] = (
    (FbgemmProduct, WIDE), (OnednnProduct, WIDE), (OnednnProduct, NARROW), (FbgemmProduct, NARROW),
)  # fmt: skip
"""From best to worst where they are exact."""


@cache
def choose_product() -> tuple[MakeProduct, int] | None:
    """The best exact product of this machine, and its levels; None: there is none."""
    return next((candidate for candidate in CANDIDATES if is_exact(*candidate)), None)


def is_exact(make: MakeProduct, levels: int) -> bool:
    """Whether a product equals that of integers of 64 bits, on the largest values there are and on random ones."""
    generator = torch.Generator().manual_seed(0)
    for outputs, inputs in ((48, 256), (17, 70)):
        values = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8, generator=generator)
        values[:8] = 127
        values[8:16] = -127
        values[1::4, ::2] *= -1
        rows = torch.randint(-levels, levels + 1, (33, inputs), generator=generator)
        rows[0], rows[1], rows[2, ::2], rows[3, 1::2] = levels, -levels, levels, -levels
        rows[:, 0] = levels  # the largest of each row is known, so quantizing it again gives these integers
        true = rows @ values.long().t()
        try:
            multiply = make(values, torch.ones(outputs), levels)
            products = multiply(rows.float()), multiply(rows[:1].float())
        except (AttributeError, RuntimeError):
            return False
        bound = ACCURATE * true.abs().max()
        if any((product.double() - true[: len(product)]).abs().max() > bound for product in products):
            return False
    return True


class Int8Linear(GatheredLinear):
    """A matrix of int8, multiplied as integers. Raises RuntimeError where no product of this machine is exact."""

    _product: IntegerProduct

    def convert(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See GatheredLinear."""
        weight = by_channel(rows)
        return weight.values, weight.scales

    def keep(self, weight: QuantizedWeight) -> tuple[torch.Tensor, ...] | None:
        """See GatheredLinear. Symmetric integers with a scale a channel."""
        return keep_channels(weight)

    def store(self, tensors: Sequence[torch.Tensor]) -> None:
        """See GatheredLinear."""
        chosen = choose_product()
        if chosen is None:
            raise RuntimeError("this machine has no exact product of 8-bit integers")
        values, scales = tensors
        make, levels = chosen
        self._product = make(values, scales.flatten(), levels)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """See GatheredLinear."""
        return self._product(x.float()).to(x.dtype)

    @property
    def num_bytes(self) -> int:
        """See Linear. Sums of rows, which the products keep for their zero point, are not counted."""
        return self.outputs * (self.inputs + 4) + self.bias_bytes


def keep_channels(weight: QuantizedWeight) -> tuple[torch.Tensor, ...] | None:
    """Values and scales [outputs, 1] of what has one scale a channel and no zero point; None for anything else."""
    if weight.values.dtype != torch.int8 or weight.group_size is not None:
        return None
    if weight.zeros is not None and bool(weight.zeros.any()):
        return None
    return weight.values, weight.scales.float()


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the warning that quantized tensors will leave torch: then OnednnProduct takes over."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
