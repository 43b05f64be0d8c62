"""The storages of weight matrices by name, and which one a quantization means on a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from engine.errors import ModelLoadError
from engine.models.linear.base import Linear
from engine.models.linear.dense import DenseLinear
from engine.models.linear.fp8 import Fp8Linear
from engine.models.linear.int8 import Int8Linear, choose_product
from engine.models.linear.packed import PackedLinear
from engine.models.linear.weight_only import Int4WeightLinear, Int8WeightLinear

MakeLinear = Callable[[Mapping[str, int], int, torch.dtype, torch.device, bool], Linear]
"""(parts, inputs, dtype, device, whether there is a bias) -> the weight, not initialised. Raises ValueError for a shape
that the storage does not take."""

LINEARS: Mapping[str, MakeLinear] = {
    "dense": DenseLinear.empty,
    "packed": PackedLinear,
    "int8": Int8Linear,
    "int8-weights": Int8WeightLinear,
    "int4-weights": Int4WeightLinear,
    "int4-weights-64": partial(Int4WeightLinear, group_size=64),
    "int4-weights-128": partial(Int4WeightLinear, group_size=128),
    "fp8": Fp8Linear,
}
"""The ways to store a matrix, by name."""

FLOAT_STORAGES = ("dense", "packed")
"""Those that hold the model's dtype."""

HEADS: Mapping[str, str] = dict.fromkeys(("int4-weights", "int4-weights-64", "int4-weights-128"), "int8-weights")
"""Where the output head is stored in another way than the layers: 4 bits of it change answers more than all layers'."""


BY_WHOLE_ROWS = ("int8", "fp8")
"""Those that quantize a row of activations by its largest element: a rank that has a part of the row would do it by
another one."""
INDIVISIBLE = (*BY_WHOLE_ROWS, "int8-weights")
"""Those, and what rounds a row of weights by its largest element while it loads."""


@dataclass(frozen=True)
class Storage:
    """How a model's matrices are stored: keys of LINEARS."""

    layers: str = "dense"
    head: str = "dense"
    draft: str | None = None
    """Of a further copy of the layers' matrices, for passes that only draft; None: there is none."""

    @classmethod
    def quantized(cls, name: str, draft: str | None = None) -> Storage:
        """All matrices of a quantization's name, the head as HEADS says."""
        return cls(name, HEADS.get(name, name), draft)


def check_quantization(name: str, device: torch.device, *, divided: bool = False) -> None:
    """Raises ModelLoadError where weights of that name (a key of LINEARS) cannot be multiplied on the device.

    divided: several ranks have a part of each matrix, quantized while it loads.
    """
    if divided and name in INDIVISIBLE:
        raise ModelLoadError(
            f"quantization {name} cannot be divided among ranks, which would round other numbers than one rank: choose "
            "none or int4-weights, or a tensor_parallel_size of 1."
        )
    if name == "fp8":
        if device.type != "cuda":
            raise ModelLoadError(f"quantization fp8 runs on NVIDIA GPUs, not on {device}: choose int8 there.")
        if torch.cuda.get_device_capability(device) < (8, 9):
            raise ModelLoadError("quantization fp8 needs a GPU of compute capability 8.9 or more.")
    elif name not in FLOAT_STORAGES:
        if device.type != "cpu":
            raise ModelLoadError(f"quantization {name} runs on a CPU, not on {device}: choose fp8 there.")
        if name == "int8" and choose_product() is None:
            raise ModelLoadError("quantization int8: this machine's products of 8-bit integers are not exact.")
