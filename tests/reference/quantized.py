"""Writers of the published quantized formats, for the tests alone: number by number, from the formats' descriptions.

They share nothing with the readers. Each makes the stored tensors of one matrix, and the matrix that they stand for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.reference.checkpoints import Tensors, random_tensors, tiny_config, write_weights

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


@dataclass(frozen=True)
class Format:
    """A published format: how a matrix is written in it, and what config.json says."""

    write: Callable[[torch.Tensor], Written]
    config: dict[str, Any]
    beside: dict[str, Any] = field(default_factory=dict)
    """hf_quant_config.json, where the format has that instead."""


def compressed(
    stored_as: str, weights: dict[str, Any], inputs: dict[str, Any] | None = None, **keys: Any
) -> dict[str, Any]:
    """compressed-tensors' config for one scheme of all matrices but the head."""
    group = {"targets": ["Linear"], "weights": {"dynamic": False, "symmetric": True, **weights}}
    return {
        "quant_method": "compressed-tensors",
        "format": stored_as,
        "quantization_status": "compressed",
        "ignore": ["diffusion_head"],
        "config_groups": {"group_0": {**group, "input_activations": inputs, "output_activations": None}},
        "kv_cache_scheme": None,
        **keys,
    }


TOKEN = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True}
TENSOR = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}


def _int(bits: int, group: int = 0, **keys: Any) -> dict[str, Any]:
    strategy = {"strategy": "group", "group_size": group} if group else {"strategy": "channel", "group_size": None}
    return {"num_bits": bits, "type": "int", **strategy, **keys}


def _float(strategy: str, **keys: Any) -> dict[str, Any]:
    return {"num_bits": 8, "type": "float", "strategy": strategy, **keys}


def gptq_config(**keys: Any) -> dict[str, Any]:
    """A config of GPTQ."""
    return {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False, "sym": True, **keys}


FP8 = {"quant_method": "fp8", "fmt": "e4m3", "modules_to_not_convert": ["diffusion_head"]}
MODELOPT = {"quant_algo": "FP8", "kv_cache_quant_algo": None, "exclude_modules": ["diffusion_head"]}

FORMATS: dict[str, Format] = {
    "ct-int8": Format(in_bytes, compressed("int-quantized", _int(8), TOKEN)),
    "ct-int8-asymmetric": Format(
        lambda m: in_bytes(m, symmetric=False), compressed("int-quantized", _int(8, symmetric=False), TOKEN)
    ),
    "ct-int4-in-bytes": Format(
        lambda m: in_bytes(m, bits=4, group=16), compressed("int-quantized", _int(4, 16), TOKEN)
    ),
    "ct-int8-packed": Format(lambda m: packed(m, bits=8), compressed("pack-quantized", _int(8))),
    "ct-int8-groups": Format(lambda m: packed(m, bits=8, group=16), compressed("pack-quantized", _int(8, 16))),
    "ct-int4": Format(lambda m: packed(m, bits=4), compressed("pack-quantized", _int(4))),
    "ct-int4-groups": Format(lambda m: packed(m, bits=4, group=16), compressed("pack-quantized", _int(4, 16))),
    "ct-int4-asymmetric": Format(
        lambda m: packed(m, bits=4, group=16, symmetric=False),
        compressed("pack-quantized", _int(4, 16, symmetric=False)),
    ),
    "ct-int4-any-order": Format(
        lambda m: packed(m, bits=4, group=16, symmetric=False, shuffled=True),
        compressed("pack-quantized", _int(4, 16, symmetric=False, actorder="group")),
    ),
    "ct-fp8-rows": Format(
        lambda m: fp8(m, block=(1, m.shape[1]), dtype=torch.bfloat16),
        compressed("float-quantized", _float("channel"), {**TOKEN, "type": "float"}),
    ),
    "ct-fp8-static": Format(
        lambda m: fp8(m, block=None, shape=(1,), inputs="input_scale"),
        compressed("float-quantized", _float("tensor"), TENSOR),
    ),
    "ct-fp8-blocks": Format(
        lambda m: fp8(m, block=(32, 16), dtype=torch.bfloat16),
        compressed(
            "float-quantized",
            _float("block", block_structure=[32, 16]),
            {**TOKEN, "type": "float", "strategy": "group", "group_size": 16},
        ),
    ),
    "gptq": Format(gptq, gptq_config()),
    "gptq-asymmetric": Format(lambda m: gptq(m, symmetric=False), gptq_config(sym=False, lm_head=False)),
    "gptq-any-order": Format(lambda m: gptq(m, shuffled=True), gptq_config(desc_act=True)),
    "gptq-rows": Format(lambda m: gptq(m, group=m.shape[1]), gptq_config(group_size=-1)),
    "gptq-8-bit": Format(lambda m: gptq(m, bits=8), gptq_config(bits=8)),
    "gptq-2-bit": Format(lambda m: gptq(m, bits=2, symmetric=False), gptq_config(bits=2, sym=False)),
    "gptq-v2": Format(
        lambda m: gptq(m, version=2, symmetric=False), gptq_config(sym=False, checkpoint_format="gptq_v2")
    ),
    "awq": Format(
        awq, {"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True, "version": "gemm",
              "modules_to_not_convert": ["diffusion_head"]}
    ),
    "fp8-blocks": Format(
        lambda m: fp8(m, block=(128, 32), scale="weight_scale_inv"),
        {**FP8, "activation_scheme": "dynamic", "weight_block_size": [128, 32]},
    ),
    "fp8-static": Format(
        lambda m: fp8(m, block=None, shape=(), scale="weight_scale_inv", inputs="activation_scale"),
        {**FP8, "activation_scheme": "static", "weight_block_size": None},
    ),
    "modelopt": Format(
        lambda m: fp8(m, block=None, shape=(), inputs="input_scale"), {"quant_method": "modelopt", **MODELOPT}
    ),
    "modelopt-beside": Format(
        lambda m: fp8(m, block=None, shape=(), inputs="input_scale"),
        {},
        {"producer": {"name": "modelopt", "version": "0.47.0"}, "quantization": MODELOPT},
    ),
}  # fmt: skip
"""Every format that is read, by a name of the tests' own."""


def write_quantized(directory: Path, form: Format, *, shards: int = 1, **overrides: Any) -> Tensors:
    """Writes a random checkpoint whose layers' matrices are in the format; returns the plain tensors it stands for."""
    config = tiny_config(**overrides)
    plain = random_tensors(config)
    stored: Tensors = {}
    for name, tensor in plain.items():
        if ".layers." not in name or tensor.dim() != 2:
            stored[name] = tensor
            continue
        parts, plain[name] = form.write(tensor)
        stored |= {f"{name.removesuffix('weight')}{suffix}": part for suffix, part in parts.items()}
    directory.mkdir(parents=True, exist_ok=True)
    own = {"quantization_config": form.config} if form.config else {}
    (directory / "config.json").write_text(json.dumps({**config, **own}))
    if form.beside:
        (directory / "hf_quant_config.json").write_text(json.dumps(form.beside))
    write_weights(directory, stored, shards)
    return plain


def write_plain(directory: Path, tensors: Tensors, **overrides: Any) -> Path:
    """Writes a plain checkpoint of these tensors."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(tiny_config(**overrides)))
    write_weights(directory, tensors)
    return directory
