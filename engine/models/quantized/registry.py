"""The quantization methods by `quant_method`, as config.json names it. What is not listed is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from engine.errors import ModelLoadError
from engine.models.files import ConfigFile
from engine.models.quantized.compressed_tensors import METHOD, describe_compressed_tensors
from engine.models.quantized.fp8 import describe_fp8, describe_modelopt
from engine.models.quantized.gptq import describe_awq, describe_gptq
from engine.models.quantized.scheme import CheckpointQuantization

METHODS: Mapping[str, Callable[[ConfigFile], CheckpointQuantization]] = {
    METHOD: describe_compressed_tensors,
    "gptq": describe_gptq,
    "awq": describe_awq,
    "fp8": describe_fp8,
    "modelopt": describe_modelopt,
}
"""By `quant_method`."""


def describe_quantization(config: ConfigFile) -> CheckpointQuantization | None:
    """What config.json says of quantized weights, or the hf_quant_config.json beside it; None if they are plain.

    config: of config.json. Raises ModelLoadError, one line that names the scheme that cannot be read.
    """
    section = config.section("quantization_config")
    if section is None:
        return _beside(config)
    method = section.values.get("quant_method")
    if not isinstance(method, str) or method not in METHODS:
        raise section.error("quant_method", f"one of {', '.join(METHODS)}")
    return METHODS[method](section)


def _beside(config: ConfigFile) -> CheckpointQuantization | None:
    """ModelOpt's own file, which older exports have alone."""
    file = ConfigFile.read(config.path.with_name("hf_quant_config.json"), optional=True)
    if not file.values:
        return None
    producer = file.section("producer")
    maker = producer.values.get("name") if producer is not None else None
    section = file.section("quantization")
    if maker != "modelopt" or section is None:
        raise ModelLoadError(f"{file.path} must be ModelOpt's, with a producer 'modelopt' and a section quantization.")
    if section.values.get("quant_algo") is None and not section.values.get("kv_cache_quant_algo"):
        return None
    return METHODS["modelopt"](section)
