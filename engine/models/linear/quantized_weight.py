"""QuantizedWeight: a matrix as small numbers with scales, whatever wrote it, and the rounding that makes one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

SMALLEST_SCALE = 1e-30
"""Of a row or group of zeros: any scale would do, but not 0, which is divided by."""


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A matrix of `outputs` rows: element = (value - zero) * scale, with one scale (and zero) a group of a row."""

    values: torch.Tensor
    """[outputs, inputs] int8 (4-bit values are -8 to 7), or float8_e4m3fn."""
    scales: torch.Tensor
    """[outputs, groups], floating. The groups of a row are equally long; one group: a scale an output channel."""
    zeros: torch.Tensor | None = None
    """[outputs, groups], floating or integer; None: all are 0."""
    bits: int = 8

    @property
    def group_size(self) -> int | None:
        """Inputs that share a scale; None: all of a row."""
        groups = self.scales.shape[1]
        return None if groups == 1 else self.values.shape[1] // groups

    def dequantize(self) -> torch.Tensor:
        """The matrix that it stands for: [outputs, inputs] float32."""
        outputs, groups = self.scales.shape
        grouped = self.values.float().view(outputs, groups, -1)
        if self.zeros is not None:
            grouped = grouped - self.zeros.float()[..., None]
        return (grouped * self.scales.float()[..., None]).view(outputs, -1)

    def cut(self, rows: slice, columns: slice) -> QuantizedWeight | None:
        """Some rows and columns of the matrix; None if that would cut a group of inputs that share a scale."""
        kept = slice(None)
        if self.group_size is not None:
            if columns.start % self.group_size or columns.stop % self.group_size:
                return None
            kept = slice(columns.start // self.group_size, columns.stop // self.group_size)
        zeros = None if self.zeros is None else self.zeros[rows, kept]
        return QuantizedWeight(self.values[rows, columns], self.scales[rows, kept], zeros, self.bits)

    def split(self, rows: Sequence[int]) -> list[QuantizedWeight]:
        """The matrix cut into parts of so many rows: a checkpoint may store q, k and v one below the other."""
        values, scales = self.values.split_with_sizes(list(rows)), self.scales.split_with_sizes(list(rows))
        zeros = [None] * len(rows) if self.zeros is None else self.zeros.split_with_sizes(list(rows))
        return [QuantizedWeight(*part, self.bits) for part in zip(values, scales, zeros, strict=True)]


def by_channel(rows: torch.Tensor) -> QuantizedWeight:
    """Rounds each row to 255 symmetric steps, as wide as its largest element needs. rows: [outputs, inputs]."""
    rows = rows.float()
    scales = rows.abs().amax(dim=1, keepdim=True).div_(127).clamp_(min=SMALLEST_SCALE)
    return QuantizedWeight((rows / scales).round_().to(torch.int8), scales)


def by_group(rows: torch.Tensor, group_size: int) -> QuantizedWeight:
    """Rounds each group of a row to 16 steps from its least to its largest element (0 among them or not).

    rows: [outputs, inputs], inputs a multiple of group_size.
    """
    grouped = rows.float().view(len(rows), -1, group_size)
    least, most = grouped.amin(dim=2), grouped.amax(dim=2)
    scales = ((most - least) / 15).clamp_(min=SMALLEST_SCALE)
    # Where all of a group are alike the steps are nothing: its zero point alone tells what they are.
    scales = torch.where(most > least, scales, least.abs().clamp_(min=SMALLEST_SCALE))
    zeros = -8 - least / scales
    steps = ((grouped - least[..., None]) / scales[..., None]).round_().clamp_(0, 15).sub_(8)
    return QuantizedWeight(steps.to(torch.int8).view(rows.shape), scales, zeros, bits=4)
