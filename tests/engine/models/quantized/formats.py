"""The published formats that are read: how a matrix is written, and what config.json says. And whole checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.engine.models.quantized.writers import Written, awq, fp8, gptq, in_bytes, packed
from tests.reference.checkpoints import Tensors, random_tensors, tiny_config, write_weights


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
