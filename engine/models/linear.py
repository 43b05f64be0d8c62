"""Linear: a weight matrix, its storage, its product, and how a checkpoint fills it.

The decoder multiplies through these objects only, so a packed or quantized storage is a further subclass and a line in
LINEARS.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F

from engine.models.quantized.weight import QuantizedWeight


class Target(ABC):
    """One tensor that a checkpoint must bring, and the place in the model that it fills."""

    shape: tuple[int, ...]

    @abstractmethod
    def load(self, tensor: torch.Tensor) -> None:
        """Stores a tensor of this shape, of any floating type."""

    def load_quantized(self, weight: QuantizedWeight) -> None:
        """Stores a matrix that a checkpoint brings quantized: as it is where the storage can hold it, else expanded."""
        self.load(weight.dequantize())

    @abstractmethod
    def values(self) -> torch.Tensor:
        """The stored values, dense: of `shape`, in the model's dtype."""

    @abstractmethod
    def fill(self, value: float) -> None:
        """Stores one value everywhere."""

    @abstractmethod
    def fill_normal(self, deviation: float, generator: torch.Generator) -> None:
        """Stores normally distributed values of mean 0."""


class TensorTarget(Target):
    """A dense tensor, or a view of rows of one."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.shape = tuple(tensor.shape)
        self._tensor = tensor

    def load(self, tensor: torch.Tensor) -> None:
        """See Target."""
        self._tensor.copy_(tensor)

    def values(self) -> torch.Tensor:
        """See Target. A view: what is written to it is written to the model."""
        return self._tensor

    def fill(self, value: float) -> None:
        """See Target."""
        self._tensor.fill_(value)

    def fill_normal(self, deviation: float, generator: torch.Generator) -> None:
        """See Target. Generated in place."""
        self._tensor.normal_(0.0, deviation, generator=generator)


class Linear(ABC):
    """A weight matrix [outputs, inputs] and its product with rows of activations.

    The outputs are one or several named *parts*, one after the other: q, k and v are one matrix and one product.
    """

    def __init__(self, parts: Mapping[str, int], inputs: int) -> None:
        """parts: outputs of each part, by name and in order."""
        self.parts = dict(parts)
        self.inputs = inputs
        self.outputs = sum(parts.values())

    @abstractmethod
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, inputs]. Returns [T, outputs], with the bias added where there is one."""

    @abstractmethod
    def add_to(self, total: torch.Tensor, x: torch.Tensor) -> None:
        """Adds the product to total [T, outputs], in place, as a residual. x: [T, inputs]. For weights without bias."""

    @abstractmethod
    def targets(self) -> dict[str, Target]:
        """The tensors of a checkpoint that fill it: `PART.weight`, and `PART.bias` where there is a bias."""

    def load(self, part: str, tensor: torch.Tensor) -> None:
        """Fills the rows of one part. tensor: [outputs of the part, inputs], of any floating type."""
        self.targets()[f"{part}.weight"].load(tensor)

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Bytes that a product reads of this weight."""

    @property
    def operations(self) -> int:
        """Floating-point operations of the product for each row of x; a multiply-add is two."""
        return 2 * self.outputs * self.inputs


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


MakeLinear = Callable[[Mapping[str, int], int, torch.dtype, torch.device, bool], Linear]
"""(parts, inputs, dtype, device, whether there is a bias) -> the weight, not initialised."""

LINEARS: Mapping[str, MakeLinear] = {"dense": DenseLinear.empty}
"""The ways to store a matrix, by name."""
