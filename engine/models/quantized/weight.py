"""QuantizedWeight: a matrix of small numbers with the scales that make it a matrix of large ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class QuantizedWeight:
    """A matrix [outputs, inputs]. Element (o, i) is (values[o, i] - zeros[o, g]) * scales[o, g], g being i's group.

    It is the same for every format: packing, order, unsigned numbers and offsets of zeros are undone.
    """

    values: torch.Tensor
    """[outputs, inputs], int8 or float8_e4m3fn. Numbers of fewer bits lie in the middle of int8: -8 to 7 for four."""
    scales: torch.Tensor
    """[outputs, groups], float32."""
    zeros: torch.Tensor | None = None
    """[outputs, groups], int8. None: all zero."""
    group_size: int
    """Neighbouring inputs that share a scale; the last group may be shorter. `inputs`: one scale a row."""
    bits: int = 8
    """Of an element as it is stored."""
    group_of: torch.Tensor | None = None
    """[inputs], int64: the group of every input, where that is not its index // group_size."""

    @property
    def per_row(self) -> bool:
        """Whether every row has one scale."""
        return self.scales.shape[1] == 1

    def dequantize(self) -> torch.Tensor:
        """The matrix: [outputs, inputs], float32."""
        if self.per_row:
            scales, zeros = self.scales, self.zeros
        else:
            groups = self.group_of
            if groups is None:
                groups = torch.arange(self.values.shape[1]) // self.group_size
            scales = self.scales[:, groups]
            zeros = None if self.zeros is None else self.zeros[:, groups]
        numbers = self.values.float()
        if zeros is not None:
            numbers -= zeros
        return numbers.mul_(scales)

    def split(self, rows: Sequence[int]) -> list[QuantizedWeight]:
        """The matrix cut into parts of so many rows: a checkpoint may store q, k and v one below the other."""
        values, scales = self.values.split_with_sizes(list(rows)), self.scales.split_with_sizes(list(rows))
        zeros = [None] * len(rows) if self.zeros is None else self.zeros.split_with_sizes(list(rows))
        return [
            QuantizedWeight(
                values=value, scales=scale, zeros=zero, group_size=self.group_size, bits=self.bits,
                group_of=self.group_of,
            )
            for value, scale, zero in zip(values, scales, zeros, strict=True)
        ]  # fmt: skip


def concatenate(parts: Sequence[QuantizedWeight]) -> QuantizedWeight | None:
    """The parts one below the other, as q, k and v are in a decoder; None if they are not quantized alike."""
    first = parts[0]
    alike = all(
        (part.values.dtype, part.values.shape[1], part.bits, part.group_size, part.scales.shape[1])
        == (first.values.dtype, first.values.shape[1], first.bits, first.group_size, first.scales.shape[1])
        and _same(part.group_of, first.group_of)
        for part in parts
    )
    if not alike:
        return None
    zeros = None
    if any(part.zeros is not None for part in parts):
        zeros = torch.cat(
            [part.scales.new_zeros(part.scales.shape, dtype=torch.int8) if part.zeros is None else part.zeros
             for part in parts]
        )  # fmt: skip
    return QuantizedWeight(
        values=torch.cat([part.values for part in parts]),
        scales=torch.cat([part.scales for part in parts]),
        zeros=zeros,
        group_size=first.group_size,
        bits=first.bits,
        group_of=first.group_of,
    )


def _same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))
