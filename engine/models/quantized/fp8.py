"""fp8 as transformers and ModelOpt write it: an e4m3 number an element, scales of the matrix or of blocks.

Sources: transformers' FineGrainedFP8Config and its kernels; ModelOpt's export (hf_quant_config.json).
"""

from __future__ import annotations

from engine.models.files import ConfigFile
from engine.models.quantized.fields import choice, names, refuse
from engine.models.quantized.scheme import Activations, CheckpointQuantization, QuantizationScheme, SchemeGroup


def describe_fp8(config: ConfigFile) -> CheckpointQuantization:
    """transformers' `fp8`. Raises ModelLoadError naming what cannot be read."""
    scheme = choice(config, "activation_scheme", ("dynamic", "static"), default="dynamic")
    choice(config, "fmt", ("e4m3",), default="e4m3")
    choice(config, "scale_fmt", ("float",), default="float")
    activations: Activations = "token" if scheme == "dynamic" else "static"
    block = config.values.get("weight_block_size")
    if block is not None and not _is_block(block):
        raise config.error("weight_block_size", "two positive integers, or null")
    found = QuantizationScheme(
        method="fp8",
        layout="plain",
        kind="float",
        bits=8,
        strategy="tensor" if block is None else "block",
        group_size=None if block is None else block[1],
        block_rows=1 if block is None else block[0],
        activations=activations,
        scale="weight_scale_inv",
        input_scale="activation_scale",
    )
    refuse(config, "modules_to_convert")
    return CheckpointQuantization((SchemeGroup(found),), names(config, "modules_to_not_convert", "ignored_layers"))


def describe_modelopt(config: ConfigFile) -> CheckpointQuantization:
    """ModelOpt's fp8, from config.json or from the section `quantization` of hf_quant_config.json.

    Raises ModelLoadError naming what cannot be read.
    """
    choice(config, "quant_algo", ("FP8",))
    refuse(config, "kv_cache_quant_algo", "kv_cache_scheme", reason="a quantized KV cache is not supported")
    refuse(config, "quantized_layers", reason="other settings for some modules are not supported")
    scheme = QuantizationScheme(
        method="modelopt", layout="plain", kind="float", bits=8, strategy="tensor", activations="static"
    )
    return CheckpointQuantization((SchemeGroup(scheme),), names(config, "exclude_modules", "ignore"))


def _is_block(block: object) -> bool:
    return isinstance(block, list) and len(block) == 2 and all(type(size) is int and size > 0 for size in block)
