"""Several small unsigned numbers in one 32-bit word, and back. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""AWQ's columns 0 to 7 are in these nibbles of a word."""


def unpack(words: torch.Tensor, bits: int, dim: int, order: Sequence[int] | None = None) -> torch.Tensor:
    """The numbers that are packed along `dim`, 32 / bits in a word: int32, from 0 to 2**bits - 1.

    words: int32, two dimensions. order: the places in a word, lowest bits first, of neighbouring numbers; None: in
    order. bits divides 32, so that no number lies in two words.
    """
    shape = [1, 1, 1]
    shape[dim + 1] = 32 // bits
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    if order is not None:
        shifts = shifts[list(order)]
    # An arithmetic shift brings ones from above, which the mask removes.
    numbers = (words.unsqueeze(dim + 1) >> shifts.view(shape)) & ((1 << bits) - 1)
    return numbers.flatten(dim, dim + 1)


def centred(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """Numbers from 0 to 2**bits - 1, moved to the middle of int8."""
    return (numbers - (1 << (bits - 1))).to(torch.int8)


def add_one_to_each(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Words whose packed numbers are all one larger.

    The sum of the whole words: writers subtract whole words too, so that a number 0 borrows from its neighbour.
    """
    ones = sum(1 << shift for shift in range(0, 32, bits))
    return words + (ones - (1 << 32) if ones >= 1 << 31 else ones)
