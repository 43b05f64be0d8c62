"""Linear: a weight matrix, its storage, its product, and how a checkpoint fills it.

The decoder multiplies through these objects only, so a packed or quantized storage is a further subclass and a line in
LINEARS (engine.models.linear.storages).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch

from engine.models.linear.quantized_weight import QuantizedWeight


class Target(ABC):
    """One tensor that a checkpoint must bring, and the place in the model that it fills."""

    shape: tuple[int, ...]
    piece: tuple[slice, ...] = ()
    """The part of the tensor that is kept, by its leading dimensions, where a rank has a part of it; (): the whole."""

    @abstractmethod
    def load(self, tensor: torch.Tensor) -> None:
        """Stores a tensor of this shape, of any floating type."""

    @abstractmethod
    def values(self) -> torch.Tensor:
        """The stored values, dense: of `shape`, in the model's dtype. Of a quantized storage: what it stands for."""

    def load_piece(self, tensor: torch.Tensor) -> None:
        """Stores `piece` of the tensor, where the rest of it has not been read."""
        self.load(tensor)

    def load_quantized(self, weight: QuantizedWeight) -> None:
        """Stores a matrix that a checkpoint brings quantized: as it is where the storage can hold it, else expanded."""
        self.load(weight.dequantize())

    def fill(self, value: float) -> None:
        """Stores one value everywhere."""
        self.load(torch.full(self.shape, value))

    def fill_normal(self, deviation: float, generator: torch.Generator) -> None:
        """Stores normally distributed values of mean 0, generated on the generator's device: the same for every
        storage."""
        tensor = torch.empty(self.shape, dtype=torch.float32, device=generator.device)
        self.load(tensor.normal_(0.0, deviation, generator=generator))


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
        """See Target. In place."""
        self._tensor.fill_(value)


class SharedTarget(Target):
    """One tensor of a checkpoint that several places hold, each in its own storage."""

    def __init__(self, first: Target, *others: Target) -> None:
        """first: the place that `values` shows."""
        self.shape = first.shape
        self._places = (first, *others)

    def load(self, tensor: torch.Tensor) -> None:
        """See Target."""
        for place in self._places:
            place.load(tensor)

    def load_quantized(self, weight: QuantizedWeight) -> None:
        """See Target."""
        for place in self._places:
            place.load_quantized(weight)

    def values(self) -> torch.Tensor:
        """See Target. Of the first place."""
        return self._places[0].values()


class PermutedTarget(Target):
    """Rows that are stored in another order than a checkpoint brings them in, the same in every period of rows."""

    def __init__(self, place: Target, order: torch.Tensor) -> None:
        """order: by row within a period, the checkpoint's row that is stored there."""
        self.shape = place.shape
        self._place = place
        periods = torch.arange(0, self.shape[0], len(order))
        self._order = (periods[:, None] + order).flatten()

    def load(self, tensor: torch.Tensor) -> None:
        """See Target."""
        self._place.load(tensor[self._order.to(tensor.device)])

    def load_quantized(self, weight: QuantizedWeight) -> None:
        """See Target."""
        zeros = None if weight.zeros is None else weight.zeros[self._order]
        self._place.load_quantized(
            QuantizedWeight(weight.values[self._order], weight.scales[self._order], zeros, weight.bits)
        )

    def values(self) -> torch.Tensor:
        """See Target. A copy, in the checkpoint's order."""
        stored = self._place.values()
        return stored[self._order.argsort().to(stored.device)]


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
        """Operations of the product for each row of x; a multiply-add is two."""
        return 2 * self.outputs * self.inputs
