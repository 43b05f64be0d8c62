"""QuantizedMatrix: the stored tensors that are one module's matrix; which of a checkpoint's tensors those are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.errors import ModelLoadError
from engine.models.linear.quantized_weight import QuantizedWeight
from engine.models.quantized.layouts import LAYOUTS, Parts
from engine.models.quantized.scheme import CheckpointQuantization, QuantizationScheme

MARKS = ("weight_packed", "weight_scale", "weight_scale_inv", "qweight")
"""Suffixes that only a quantized module has."""


@dataclass(frozen=True)
class QuantizedMatrix:
    """The matrix of one module, stored in several tensors."""

    module: str
    scheme: QuantizationScheme
    parts: Mapping[str, str]
    """Suffix -> a tensor's name in the checkpoint."""
    unread: tuple[str, ...] = ()
    """Names of tensors that belong to the module and are not needed: scales of its inputs."""

    @property
    def stored_names(self) -> tuple[str, ...]:
        """All of its tensors in the checkpoint, that with the elements first."""
        first = self.parts[LAYOUTS[self.scheme.layout].matrix]
        return (first, *(name for name in self.parts.values() if name != first), *self.unread)

    def read(self, tensor_of: Callable[[str], torch.Tensor], shape: tuple[int, int]) -> QuantizedWeight:
        """The matrix. tensor_of: brings a tensor of the checkpoint; shape: (outputs, inputs), as the model wants it.

        Raises ModelLoadError naming a tensor of another shape or type than the scheme makes it.
        """
        tensors = {suffix: tensor_of(name) for suffix, name in self.parts.items()}
        return LAYOUTS[self.scheme.layout].read(Parts(self.module, self.scheme, tensors, shape))


@dataclass(frozen=True)
class StoredMatrices:
    """The quantized matrices of a checkpoint."""

    by_name: Mapping[str, QuantizedMatrix]
    """By the name `MODULE.weight` that a plain one would have."""
    files: Mapping[str, Path]
    """The file of every tensor of the checkpoint."""

    def places(self) -> dict[str, Path]:
        """The file of every tensor and matrix: a matrix stands for all of its tensors."""
        parts = {name for matrix in self.by_name.values() for name in matrix.stored_names}
        found = {name: path for name, path in self.files.items() if name not in parts}
        return found | {name: self.files[matrix.stored_names[0]] for name, matrix in self.by_name.items()}

    def __str__(self) -> str:
        """In words, such as "140 matrices of int4 in groups of 128 (gptq)"; empty without any."""
        counts = Counter(f"{matrix.scheme} ({matrix.scheme.method})" for matrix in self.by_name.values())
        return ", ".join(f"{count} matrices of {scheme}" for scheme, count in counts.items())


def find_matrices(quantization: CheckpointQuantization, files: Mapping[str, Path]) -> StoredMatrices:
    """The quantized matrices among a checkpoint's tensors. files: the file of every tensor.

    Modules without a mark of quantization are left out: their tensors are plain. Raises ModelLoadError for a module
    that is quantized and lacks a tensor, or that the configuration says is not quantized.
    """
    modules: dict[str, dict[str, str]] = {}
    for name in files:
        module, _, suffix = name.rpartition(".")
        modules.setdefault(module, {})[suffix] = name
    found: dict[str, QuantizedMatrix] = {}
    for module, stored in modules.items():
        if any(mark in stored for mark in MARKS):
            try:
                found[f"{module}.weight"] = _matrix(quantization, module, stored)
            except ModelLoadError as error:
                raise ModelLoadError(f"{files[next(iter(stored.values()))].parent}: {error}") from None
    return StoredMatrices(found, files)


def _matrix(quantization: CheckpointQuantization, module: str, stored: Mapping[str, str]) -> QuantizedMatrix:
    scheme = quantization.scheme_of(module)
    if scheme is None:
        mark = next(stored[mark] for mark in MARKS if mark in stored)
        raise ModelLoadError(f"{mark} is stored, but the quantization config has no scheme for {module}.")
    layout = LAYOUTS[scheme.layout]
    scale = (scheme.scale,) if scheme.layout in ("plain", "packed") else ()
    required = (layout.matrix, *layout.required, *scale)
    missing = [f"{module}.{suffix}" for suffix in required if suffix not in stored]
    if missing:
        raise ModelLoadError(f"{module} cannot be read as {scheme} of {scheme.method}: {', '.join(missing)} missing.")
    if not scheme.symmetric and scheme.layout in ("plain", "packed") and "weight_zero_point" not in stored:
        raise ModelLoadError(f"{module} cannot be read as {scheme}: it is not symmetric, and has no weight_zero_point.")
    if layout.matrix != "weight" and "weight" in stored:
        raise ModelLoadError(f"{stored[layout.matrix]} and {stored['weight']} are both the weight of {module}.")
    known = (*required, *(suffix for suffix in layout.optional if suffix in stored))
    inputs = (scheme.input_scale, "input_zero_point") if scheme.activations != "none" else ()
    unread = tuple(stored[suffix] for suffix in inputs if suffix in stored)
    return QuantizedMatrix(module, scheme, {suffix: stored[suffix] for suffix in known}, unread)
