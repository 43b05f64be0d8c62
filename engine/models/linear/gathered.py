"""GatheredLinear: the base of storages that are made of a whole matrix, whose parts a checkpoint brings one by one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch

from engine.models.linear.base import Linear, Target, TensorTarget
from engine.models.linear.quantized_weight import QuantizedWeight

PIECE = 1024
"""Rows that are converted at a time: their float32 copy is all that a matrix takes beside its storage."""


class GatheredLinear(Linear):
    """A matrix that is stored once all of its parts are there. Until then the parts wait in the form they are made of.

    A part that is loaded once more replaces its rows.
    """

    def __init__(
        self, parts: Mapping[str, int], inputs: int, dtype: torch.dtype, device: torch.device, bias: bool = False
    ) -> None:
        """Allocates nothing but the bias. dtype: of the products."""
        super().__init__(parts, inputs)
        self.dtype = dtype
        self.device = device
        self.bias = torch.empty(self.outputs, dtype=dtype, device=device) if bias else None
        self._waiting: dict[str, tuple[torch.Tensor, ...]] = {}
        self._is_stored = False

    @abstractmethod
    def convert(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Rows [n, inputs] of any floating type in the form that the storage is made of: tensors of n rows each."""

    def keep(self, weight: QuantizedWeight) -> tuple[torch.Tensor, ...] | None:
        """The same of rows that come quantized, without loss; None: the storage cannot hold them as they are."""
        return None

    @abstractmethod
    def store(self, tensors: Sequence[torch.Tensor]) -> None:
        """Stores the whole matrix. tensors: what `convert` makes, of all rows."""

    @abstractmethod
    def product(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, inputs]. Returns [T, outputs] in x's dtype, fresh, without the bias."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See Linear."""
        y = self.product(x)
        return y if self.bias is None else y.add_(self.bias)

    def add_to(self, total: torch.Tensor, x: torch.Tensor) -> None:
        """See Linear."""
        total.add_(self.product(x))

    def targets(self) -> dict[str, Target]:
        """See Linear."""
        found: dict[str, Target] = {f"{part}.weight": PartTarget(self, part) for part in self.parts}
        if self.bias is not None:
            sizes = list(self.parts.values())
            for part, rows in zip(self.parts, self.bias.split_with_sizes(sizes), strict=True):
                found[f"{part}.bias"] = TensorTarget(rows)
        return found

    @torch.inference_mode(False)
    @torch.no_grad()
    def put(self, part: str, tensors: tuple[torch.Tensor, ...]) -> None:
        """Takes a part, as `convert` makes it; the last one completes the matrix."""
        if self._is_stored:
            self._waiting = {name: self.convert(self.values(name)) for name in self.parts}
            self._is_stored = False
        self._waiting[part] = tensors
        if len(self._waiting) == len(self.parts):
            ordered = [self._waiting[name] for name in self.parts]
            self._waiting = {}
            # One part, the most of them, is not copied.
            self.store(
                ordered[0] if len(ordered) == 1 else [torch.cat(pieces) for pieces in zip(*ordered, strict=True)]
            )
            self._is_stored = True

    @torch.no_grad()
    def values(self, part: str) -> torch.Tensor:
        """The rows of a part as they are multiplied: the product with the identity. [outputs of the part, inputs]."""
        start = sum(list(self.parts.values())[: list(self.parts).index(part)])
        columns = []
        for first in range(0, self.inputs, PIECE):
            rows = torch.zeros((min(PIECE, self.inputs - first), self.inputs), dtype=self.dtype, device=self.device)
            rows[:, first:].fill_diagonal_(1.0)
            columns.append(self.product(rows)[:, start : start + self.parts[part]].t())
        return torch.cat(columns, dim=1)

    @property
    def bias_bytes(self) -> int:
        """Bytes of the bias."""
        return 0 if self.bias is None else self.bias.nbytes


class PartTarget(Target):
    """The rows of one part."""

    def __init__(self, linear: GatheredLinear, part: str) -> None:
        self.shape = (linear.parts[part], linear.inputs)
        self._linear = linear
        self._part = part

    def load(self, tensor: torch.Tensor) -> None:
        """See Target."""
        pieces = [self._linear.convert(rows.to(self._linear.device)) for rows in torch.split(tensor, PIECE)]
        self._linear.put(self._part, tuple(torch.cat(column) for column in zip(*pieces, strict=True)))

    def load_quantized(self, weight: QuantizedWeight) -> None:
        """See Target."""
        kept = self._linear.keep(weight)
        if kept is None:
            self.load(weight.dequantize())
        else:
            self._linear.put(self._part, kept)

    def values(self) -> torch.Tensor:
        """See Target. A copy."""
        return self._linear.values(self._part)
