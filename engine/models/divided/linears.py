"""Weights of which this rank has a part: sums of products over ranks, and targets that take a part of a tensor."""

from __future__ import annotations

import torch

from engine.models.linear.base import Linear, Target
from engine.models.linear.quantized_weight import QuantizedWeight
from engine.ranks.group import RankGroup


def summed(linear: Linear, group: RankGroup) -> Linear:
    """A matrix of which every rank has some columns, such that `add_to` adds the product of the whole one."""
    return linear if group.size == 1 else SummedLinear(linear, group)


class SummedLinear(Linear):
    """Columns of a matrix without bias. Each rank multiplies its own columns with its own part of x."""

    def __init__(self, linear: Linear, group: RankGroup) -> None:
        super().__init__(linear.parts, linear.inputs)
        self._linear = linear
        self._group = group

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See Linear."""
        return self._group.sum(self._linear(x))

    def add_to(self, total: torch.Tensor, x: torch.Tensor) -> None:
        """See Linear."""
        total.add_(self(x))

    def targets(self) -> dict[str, Target]:
        """See Linear. Those of this rank's columns."""
        return self._linear.targets()

    @property
    def num_bytes(self) -> int:
        """See Linear. Of this rank's columns; so are its operations."""
        return self._linear.num_bytes


class CutTarget(Target):
    """A part of a tensor, of adjacent rows or columns; `shape` is that of the whole, which a checkpoint brings."""

    def __init__(self, place: Target, dimension: int, start: int, whole: int) -> None:
        """place: takes the part. dimension: 0 for rows, 1 for columns; start: the first of them; whole: all of them."""
        length = place.shape[dimension]
        self.shape = (*place.shape[:dimension], whole, *place.shape[dimension + 1 :])
        self.piece = (*(slice(0, size) for size in self.shape[:dimension]), slice(start, start + length))
        self._place = place

    def load(self, tensor: torch.Tensor) -> None:
        """See Target."""
        self.load_piece(tensor[self.piece])

    def load_piece(self, tensor: torch.Tensor) -> None:
        """See Target."""
        self._place.load(tensor)

    def load_quantized(self, weight: QuantizedWeight) -> None:
        """See Target. Expanded first where its groups are cut."""
        rows, columns = (*self.piece, slice(0, weight.values.shape[1]))[:2]
        part = weight.cut(rows, columns)
        if part is None:
            self.load(weight.dequantize())
        else:
            self._place.load_quantized(part)

    def values(self) -> torch.Tensor:
        """See Target. Of the part alone."""
        return self._place.values()


class AbsentTarget(Target):
    """A tensor that another rank holds."""

    piece = (slice(0, 0),)

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def load(self, tensor: torch.Tensor) -> None:
        """See Target. Stores nothing."""

    def load_quantized(self, weight: QuantizedWeight) -> None:
        """See Target. Stores nothing."""

    def values(self) -> torch.Tensor:
        """See Target. Nothing: an empty tensor."""
        return torch.empty(0)
