"""Writers of the published quantized formats, for the tests alone: number by number, from the formats' descriptions.

They share nothing with the readers. Each makes the stored tensors of one matrix, and the matrix that they stand for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tests.reference.checkpoints import Tensors

AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
"""The column whose number is in nibble 0, 1, ... of a word."""


def pack(numbers: Any, bits: int, order: Sequence[int] | None = None) -> torch.Tensor:
    """[rows, columns] of unsigned numbers, packed along the columns into int32, the last word filled with zeros."""
    per_word = 32 // bits
    order = order or range(per_word)
    table = []
    for row in np.asarray(numbers, dtype=np.int64):
        words = []
        for start in range(0, len(row), per_word):
            word = 0
            for place, column in enumerate(order):
                if start + column < len(row):
                    word |= int(row[start + column]) << (bits * place)
            words.append(word)
        table.append(words)
    return torch.from_numpy(np.array(table, dtype=np.uint32).view(np.int32))


@dataclass
class Rounded:
    """A matrix rounded to integers: (numbers - zeros) * scales, by groups of columns."""

    numbers: Any
    """[outputs, inputs], unsigned."""
    zeros: Any
    """[outputs, groups], unsigned."""
    scales: torch.Tensor
    """[outputs, groups], in the type that is stored."""
    group_of: Any
    """[inputs]"""

    @property
    def matrix(self) -> torch.Tensor:
        scales = self.scales.double().numpy()
        return torch.from_numpy((self.numbers - self.zeros[:, self.group_of]) * scales[:, self.group_of]).float()


def round_to(
    matrix: torch.Tensor, bits: int, group: int, dtype: torch.dtype, symmetric: bool, shuffled: bool = False
) -> Rounded:
    """Rounds to `bits`, with a scale every `group` inputs of a row; shuffled: the groups' inputs lie anywhere."""
    weights = matrix.double().numpy()
    inputs = weights.shape[1]
    group_of = np.arange(inputs) // group
    if shuffled:
        group_of = np.random.default_rng(5).permutation(group_of)
    middle, top = 1 << (bits - 1), (1 << bits) - 1
    low = np.stack([weights[:, group_of == g].min(1) for g in range(group_of.max() + 1)], axis=1)
    high = np.stack([weights[:, group_of == g].max(1) for g in range(group_of.max() + 1)], axis=1)
    wanted = np.maximum(-low, high) / (middle - 1) if symmetric else (high - low) / top
    scales = torch.from_numpy(wanted).to(dtype)
    exact = scales.double().numpy()
    zeros = np.full(low.shape, middle) if symmetric else np.clip(np.round(-low / exact), 0, top).astype(np.int64)
    numbers = np.clip(np.round(weights / exact[:, group_of]) + zeros[:, group_of], 0, top).astype(np.int64)
    return Rounded(numbers, zeros, scales, group_of)


Written = tuple[Tensors, torch.Tensor]
"""The stored tensors by suffix, and the matrix that they stand for."""


def packed(
    matrix: torch.Tensor, *, bits: int, group: int = 0, symmetric: bool = True, shuffled: bool = False
) -> Written:
    """compressed-tensors' pack-quantized. group 0: a scale a row."""
    found = round_to(matrix, bits, group or matrix.shape[1], torch.bfloat16, symmetric, shuffled)
    stored = {
        "weight_packed": pack(found.numbers, bits),
        "weight_scale": found.scales,
        "weight_shape": torch.tensor(matrix.shape),
    }
    if not symmetric:
        stored["weight_zero_point"] = pack(found.zeros.T, bits).t().contiguous()
    if shuffled:
        stored["weight_g_idx"] = torch.from_numpy(found.group_of).int()
    return stored, found.matrix


def in_bytes(matrix: torch.Tensor, *, bits: int = 8, group: int = 0, symmetric: bool = True) -> Written:
    """compressed-tensors' int-quantized: an element a byte. group 0: a scale a row."""
    found = round_to(matrix, bits, group or matrix.shape[1], torch.bfloat16, symmetric)
    middle = 1 << (bits - 1)
    stored = {"weight": torch.from_numpy(found.numbers - middle).to(torch.int8), "weight_scale": found.scales}
    if not symmetric:
        stored["weight_zero_point"] = torch.from_numpy(found.zeros - middle).to(torch.int8)
    return stored, found.matrix


def gptq(
    matrix: torch.Tensor, *, bits: int = 4, group: int = 16, version: int = 1, symmetric: bool = True,
    shuffled: bool = False,
) -> Written:  # fmt: skip
    """GPTQ. Version 1 stores whole words of zero points less one in each place, so that a 0 borrows."""
    found = round_to(matrix, bits, group, torch.float16, symmetric, shuffled)
    qzeros = pack(found.zeros.T, bits)
    if version == 1:
        ones = sum(1 << shift for shift in range(0, 32, bits))
        qzeros = torch.from_numpy(((qzeros.numpy().astype(np.int64) - ones) % 2**32).astype(np.uint32).view(np.int32))
    stored = {
        "qweight": pack(found.numbers, bits).t().contiguous(),
        "qzeros": qzeros,
        "scales": found.scales.t().contiguous(),
        "g_idx": torch.from_numpy(found.group_of).int(),
    }
    return stored, found.matrix


def awq(matrix: torch.Tensor, *, group: int = 16) -> Written:
    """AWQ's gemm."""
    found = round_to(matrix, 4, group, torch.float16, False)
    stored = {
        "qweight": pack(found.numbers.T, 4, AWQ_COLUMNS),
        "qzeros": pack(found.zeros.T, 4, AWQ_COLUMNS),
        "scales": found.scales.t().contiguous(),
    }
    return stored, found.matrix


def fp8(
    matrix: torch.Tensor, *, block: tuple[int, int] | None, scale: str = "weight_scale", inputs: str | None = None,
    shape: tuple[int, ...] | None = None, dtype: torch.dtype = torch.float32,
) -> Written:  # fmt: skip
    """fp8 with a scale a block, or one of the matrix. shape: of the stored scale; inputs: name of the inputs' scale."""
    rows, columns = block or tuple(matrix.shape)
    outputs, width = matrix.shape
    scales = torch.empty(-(-outputs // rows), -(-width // columns), dtype=dtype)
    values = torch.empty(matrix.shape, dtype=torch.float8_e4m3fn)
    meant = torch.empty(matrix.shape)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            at = (slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns))
            scales[i, j] = matrix[at].abs().max() / 448
            values[at] = (matrix[at] / scales[i, j].float()).to(torch.float8_e4m3fn)
            meant[at] = (values[at].double() * scales[i, j].double()).float()
    stored = {"weight": values, scale: scales if shape is None else scales.reshape(shape)}
    if inputs is not None:
        stored[inputs] = torch.tensor(0.25)
    return stored, meant
