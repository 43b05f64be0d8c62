"""QuantizationScheme: how a module's matrix is quantized; CheckpointQuantization: which module by which scheme."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

LayoutName = Literal["plain", "packed", "gptq", "gptq_v2", "awq"]
Strategy = Literal["tensor", "channel", "group", "block"]
Activations = Literal["none", "token", "static"]


@dataclass(frozen=True, kw_only=True)
class QuantizationScheme:
    """How the matrix of one module is stored."""

    method: str
    """`quant_method`, as config.json names it."""
    layout: LayoutName
    """Names and packing of the stored tensors; a key of LAYOUTS."""
    kind: Literal["int", "float"]
    """What an element is: an integer, or an fp8 number (e4m3)."""
    bits: int
    strategy: Strategy
    """What shares a scale: the whole matrix, a row, `group_size` inputs of a row, or a block of rows and inputs."""
    group_size: int | None = None
    """Inputs that share a scale in a group or a block; None: all."""
    block_rows: int = 1
    """Rows that share a scale in a block."""
    symmetric: bool = True
    """Whether there are no zero points."""
    ordered: bool = True
    """Whether groups are of neighbouring inputs."""
    activations: Activations = "none"
    """How the checkpoint wants the inputs of the product: as they are, quantized by token as they come, or quantized
    with a scale that it brings."""
    scale: str = "weight_scale"
    """Suffix of the tensor with the scales."""
    input_scale: str = "input_scale"
    """Suffix of the tensor with the scale of the inputs, where the checkpoint brings one."""

    def __str__(self) -> str:
        """In words, such as "int4 in groups of 128"."""
        shared = {
            "tensor": "a scale a matrix",
            "channel": "a scale a row",
            "group": f"in groups of {self.group_size}",
            "block": f"in blocks of {self.block_rows}x{self.group_size}",
        }
        return f"{'fp' if self.kind == 'float' else 'int'}{self.bits} {shared[self.strategy]}"


@dataclass(frozen=True)
class ModuleNames:
    """Names of modules: whole, the beginning or end of one up to a dot, with `*`, or a pattern after `re:`."""

    patterns: tuple[str, ...]

    def __contains__(self, module: str) -> bool:
        return any(_names(pattern, module) for pattern in self.patterns)


@dataclass(frozen=True)
class SchemeGroup:
    """One scheme and the modules that it is for."""

    scheme: QuantizationScheme
    targets: tuple[str, ...] = ("Linear",)
    """Names of modules, patterns after `re:`, or classes; `Linear` is every matrix."""


@dataclass(frozen=True)
class CheckpointQuantization:
    """The schemes of a checkpoint's modules."""

    groups: tuple[SchemeGroup, ...]
    ignored: ModuleNames
    """Modules that are not quantized."""

    def scheme_of(self, module: str) -> QuantizationScheme | None:
        """The scheme of a module that is stored quantized; None if the configuration has none for it.

        A module's own name goes before a pattern, and that before a class.
        """
        if module in self.ignored:
            return None
        for matches in (_is_name, _is_pattern_of, _is_class):
            for group in self.groups:
                if any(matches(target, module) for target in group.targets):
                    return group.scheme
        return None


def _names(pattern: str, module: str) -> bool:
    if pattern.startswith("re:"):
        return _is_pattern_of(pattern, module)
    if "*" in pattern:
        return fnmatchcase(module, pattern)
    return f".{module}.".startswith(f".{pattern}.") or module.endswith(f".{pattern}")


def _is_name(target: str, module: str) -> bool:
    return target == module


def _is_pattern_of(target: str, module: str) -> bool:
    return target.startswith("re:") and re.match(target.removeprefix("re:"), module) is not None


def _is_class(target: str, module: str) -> bool:
    return target == "Linear"


def bad_pattern(patterns: Sequence[str]) -> str | None:
    """The first entry that is no regular expression though it says so."""
    for pattern in patterns:
        if pattern.startswith("re:"):
            try:
                re.compile(pattern.removeprefix("re:"))
            except (re.error, OverflowError, RecursionError):
                return pattern
    return None
