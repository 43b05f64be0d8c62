"""How each layout stores a module's matrix, and what makes a QuantizedWeight of it. Pure functions of tensors.

Sources: the formats' published descriptions and writers (compressed-tensors, AutoGPTQ and GPTQModel, AutoAWQ, ModelOpt,
transformers' fine-grained fp8).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from engine.errors import ModelLoadError
from engine.models.linear.quantized_weight import QuantizedWeight
from engine.models.quantized.packing import AWQ_ORDER, add_one_to_each, centred, unpack
from engine.models.quantized.scheme import LayoutName, QuantizationScheme

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Parts:
    """The stored tensors of one module by suffix, each checked when it is asked for."""

    module: str
    scheme: QuantizationScheme
    tensors: Mapping[str, torch.Tensor]
    shape: tuple[int, int]
    """(outputs, inputs) of the module, as the model's shape says."""

    def get(self, suffix: str, shape: tuple[int, ...], *dtypes: torch.dtype) -> torch.Tensor:
        """A tensor of this shape and one of these types. Raises ModelLoadError if it is another one."""
        tensor = self.tensors[suffix]
        if tensor.dtype not in dtypes:
            stored = str(tensor.dtype).removeprefix("torch.")
            allowed = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise ModelLoadError(f"{self.module}.{suffix} is stored as {stored}; {self.scheme} needs {allowed}.")
        if tuple(tensor.shape) != shape:
            raise ModelLoadError(
                f"{self.module}.{suffix} has shape {tuple(tensor.shape)}; {self.scheme} of a matrix of {self.shape} "
                f"makes it {shape}."
            )
        return tensor

    def error(self, reason: str) -> ModelLoadError:
        """The error for a module that cannot be read."""
        return ModelLoadError(f"{self.module} cannot be read as {self.scheme}: {reason}.")

    @property
    def group_size(self) -> int:
        """Inputs that share a scale."""
        return self.scheme.group_size or self.shape[1]

    @property
    def num_groups(self) -> int:
        """Scales of a row."""
        return -(-self.shape[1] // self.group_size)

    def words(self, count: int, of: str) -> int:
        """Words that hold so many numbers. Raises ModelLoadError if the last one would not be full."""
        per_word = 32 // self.scheme.bits
        if count % per_word:
            raise self.error(f"{count} {of} are no multiple of {per_word}")
        return count // per_word


@dataclass(frozen=True)
class Layout:
    """The tensors of a module, by suffix, and how to read them."""

    matrix: str
    """The suffix of the elements."""
    required: tuple[str, ...]
    """Others without which nothing can be read; the scheme's own `scale` comes to them in the layouts that have it."""
    optional: tuple[str, ...]
    read: Callable[[Parts], QuantizedWeight]


def _read_plain(parts: Parts) -> QuantizedWeight:
    """`weight`, an element a byte, also if it has fewer bits."""
    dtype = torch.int8 if parts.scheme.kind == "int" else torch.float8_e4m3fn
    values = parts.get("weight", parts.shape, dtype)
    limit = 1 << (parts.scheme.bits - 1)
    if limit < 128 and (int(values.min()) < -limit or int(values.max()) >= limit):
        raise parts.error(f"weight has elements from {int(values.min())} to {int(values.max())}")
    zeros = None
    if "weight_zero_point" in parts.tensors:
        if dtype != torch.int8:
            raise parts.error("there are no zero points of fp8 numbers")
        zeros = _as_rows(parts, "weight_zero_point", torch.int8)
    return _weight(parts, values, _as_rows(parts, parts.scheme.scale, *FLOATS), zeros)


def _read_packed(parts: Parts) -> QuantizedWeight:
    """compressed-tensors' packed integers: along a row, offset by half of their range; the zero points along a
    column."""
    outputs, inputs = parts.shape
    bits = parts.scheme.bits
    stored = parts.get("weight_shape", (2,), torch.int64, torch.int32).tolist()
    if tuple(stored) != parts.shape:
        raise parts.error(f"weight_shape is {tuple(stored)}, but config.json makes it {parts.shape}")
    per_word = 32 // bits
    words = parts.get("weight_packed", (outputs, -(-inputs // per_word)), torch.int32)
    values = centred(unpack(words, bits, 1)[:, :inputs], bits)
    zeros = None
    if "weight_zero_point" in parts.tensors:
        packed = parts.get("weight_zero_point", (-(-outputs // per_word), parts.num_groups), torch.int32)
        zeros = centred(unpack(packed, bits, 0)[:outputs], bits)
    groups = _group_of(parts, "weight_g_idx")
    return _weight(parts, values, _as_rows(parts, parts.scheme.scale, *FLOATS), zeros, groups)


def _read_gptq(parts: Parts) -> QuantizedWeight:
    """GPTQ: `qweight` packed along the inputs, `qzeros` along the outputs. The first version stores zero - 1."""
    outputs, inputs = parts.shape
    bits = parts.scheme.bits
    values = unpack(parts.get("qweight", (parts.words(inputs, "inputs"), outputs), torch.int32), bits, 0)
    words = parts.get("qzeros", (parts.num_groups, parts.words(outputs, "outputs")), torch.int32)
    if parts.scheme.layout == "gptq":
        words = add_one_to_each(words, bits)
    zeros = unpack(words, bits, 1)
    scales = parts.get("scales", (parts.num_groups, outputs), *FLOATS)
    groups = _group_of(parts, "g_idx")
    return _weight(parts, centred(values, bits).t(), scales.t(), centred(zeros, bits).t(), groups)


def _read_awq(parts: Parts) -> QuantizedWeight:
    """AWQ's `gemm`: both packed along the outputs, in an order of its own."""
    outputs, inputs = parts.shape
    words = parts.words(outputs, "outputs")
    values = unpack(parts.get("qweight", (inputs, words), torch.int32), 4, 1, AWQ_ORDER)
    zeros = unpack(parts.get("qzeros", (parts.num_groups, words), torch.int32), 4, 1, AWQ_ORDER)
    scales = parts.get("scales", (parts.num_groups, outputs), *FLOATS)
    return _weight(parts, centred(values, 4).t(), scales.t(), centred(zeros, 4).t())


LAYOUTS: Mapping[LayoutName, Layout] = {
    "plain": Layout("weight", (), ("weight_zero_point",), _read_plain),
    "packed": Layout("weight_packed", ("weight_shape",), ("weight_zero_point", "weight_g_idx"), _read_packed),
    "gptq": Layout("qweight", ("qzeros", "scales"), ("g_idx",), _read_gptq),
    "gptq_v2": Layout("qweight", ("qzeros", "scales"), ("g_idx",), _read_gptq),
    "awq": Layout("qweight", ("qzeros", "scales"), (), _read_awq),
}
"""The layouts that are read, by name."""


def _as_rows(parts: Parts, suffix: str, *dtypes: torch.dtype) -> torch.Tensor:
    """Scales or zero points of a matrix, a row or blocks, spread to [outputs, groups]."""
    outputs = parts.shape[0]
    rows = -(-outputs // parts.scheme.block_rows)
    stored = parts.tensors[suffix]
    if parts.scheme.strategy == "tensor":
        return (
            parts.get(suffix, () if stored.dim() == 0 else (1,) * stored.dim(), *dtypes)
            .reshape(1, 1)
            .expand(outputs, 1)
        )
    shape = (outputs,) if parts.scheme.strategy == "channel" and stored.dim() == 1 else (rows, parts.num_groups)
    found = parts.get(suffix, shape, *dtypes).view(rows, parts.num_groups)
    return found.repeat_interleave(parts.scheme.block_rows, 0)[:outputs]


def _group_of(parts: Parts, suffix: str) -> torch.Tensor | None:
    """The group of every input; None if they are in order, or if the checkpoint says that none is set (-1)."""
    if suffix not in parts.tensors:
        return None
    inputs = parts.shape[1]
    groups = parts.get(suffix, (inputs,), torch.int32, torch.int64).long()
    if (
        parts.num_groups == 1
        or bool((groups == -1).all())
        or torch.equal(groups, torch.arange(inputs) // parts.group_size)
    ):
        return None
    if parts.scheme.ordered:
        raise parts.error(f"{suffix} is in another order than the quantization config says")
    if int(groups.min()) < 0 or int(groups.max()) >= parts.num_groups:
        raise parts.error(
            f"{suffix} names groups from {int(groups.min())} to {int(groups.max())} of {parts.num_groups}"
        )
    return groups


def _weight(
    parts: Parts,
    values: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    groups: torch.Tensor | None = None,
) -> QuantizedWeight:
    """groups: the group of every input, if they are not in order."""
    inputs = parts.shape[1]
    if zeros is not None and not bool(zeros.any()):
        zeros = None
    if zeros is not None and parts.scheme.symmetric:
        raise parts.error("it is symmetric, but there are zero points")
    if groups is None and parts.num_groups > 1 and inputs % parts.group_size:
        groups = torch.arange(inputs) // parts.group_size
    if groups is not None:
        # Groups of one input each stand for any others.
        scales, zeros = scales[:, groups], None if zeros is None else zeros[:, groups]
    return QuantizedWeight(
        values.contiguous(),
        scales.float().contiguous(),
        None if zeros is None else zeros.contiguous(),
        parts.scheme.bits,
    )
