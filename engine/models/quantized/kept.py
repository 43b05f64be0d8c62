"""Which storage holds a published matrix exactly as it is stored, so that it need not be expanded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from engine.errors import ModelLoadError
from engine.models.linear.storages import LINEARS, check_quantization
from engine.models.quantized.matrices import StoredMatrices
from engine.models.quantized.scheme import CheckpointQuantization, QuantizationScheme

INT4_STORAGES = {128: "int4-weights-128", 64: "int4-weights-64", 32: "int4-weights"}
"""By inputs of a group. Larger groups come first: they take fewer bytes."""


@dataclass(frozen=True)
class KeptSchemes:
    """How a checkpoint stores the decoder's matrices; None: plain, or not all of them alike."""

    layers: QuantizationScheme | None = None
    head: QuantizationScheme | None = None


NOTHING_KEPT = KeptSchemes()


def kept_schemes(
    matrices: StoredMatrices,
    decoder_names: Callable[[str], tuple[str, ...]],
    quantization: CheckpointQuantization | None,
) -> KeptSchemes:
    """The schemes of a checkpoint's layers and head. Layers that are not all alike have none: one storage serves all.

    decoder_names: checkpoint's name -> the decoder's. Without files (random weights) the layers have the checkpoint's
    scheme if there is only one.
    """
    if quantization is None:
        return NOTHING_KEPT
    if not matrices.files:
        groups = quantization.groups
        return KeptSchemes(groups[0].scheme if len(groups) == 1 else None)
    head: QuantizationScheme | None = None
    layers: set[QuantizationScheme | None] = set()
    for name in matrices.places():
        matrix = matrices.by_name.get(name)
        scheme = None if matrix is None else matrix.scheme
        for wanted in decoder_names(name):
            if wanted == "lm_head.weight":
                head = scheme
            elif wanted.startswith("layers.") and wanted.endswith("_proj.weight"):
                layers.add(scheme)
    return KeptSchemes(layers.pop() if len(layers) == 1 else None, head)


def storage_that_keeps(
    scheme: QuantizationScheme | None, shapes: Iterable[tuple[int, int]], device: torch.device
) -> str | None:
    """The storage, a key of LINEARS, that holds matrices of these shapes as they are; None if none does, or none can
    multiply them on the device.

    shapes: (outputs, inputs). Scales and zero points of weight-only storages are rounded to bfloat16, as published
    ones are; those of int8 and fp8 are not.
    """
    shapes = list(shapes)
    name = None if scheme is None or not scheme.ordered else _name(scheme, [inputs for _, inputs in shapes])
    if name is None:
        return None
    try:
        check_quantization(name, device)
        for outputs, inputs in shapes:
            LINEARS[name]({"checked": outputs}, inputs, torch.float32, torch.device("meta"), False)
    except (ModelLoadError, ValueError):
        return None
    return name


def _name(scheme: QuantizationScheme, inputs: list[int]) -> str | None:
    by_row = scheme.strategy in ("tensor", "channel")
    if scheme.kind == "float":
        return "fp8" if by_row else None
    if scheme.bits == 8 and by_row and scheme.symmetric:
        return "int8-weights" if scheme.activations == "none" else "int8"
    if scheme.bits == 4 and scheme.strategy != "block":
        groups = inputs if scheme.group_size is None else [scheme.group_size]
        return next((name for size, name in INT4_STORAGES.items() if not any(group % size for group in groups)), None)
    return None
