"""What cannot be read exactly is refused by name. If one fails, a checkpoint is read as something that it is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from engine.errors import ModelLoadError
from engine.models.families.registry import describe_model
from engine.models.files import ConfigFile
from engine.models.loader import load_model
from engine.models.quantized.layouts import LAYOUTS, Parts
from engine.models.quantized.registry import describe_quantization
from tests.engine.models.quantized.formats import (
    FORMATS,
    FP8,
    MODELOPT,
    TOKEN,
    compressed,
    gptq_config,
    write_quantized,
)
from tests.reference.checkpoints import Tensors, tiny_config, write_weights

CPU = torch.device("cpu")
INT8 = {"num_bits": 8, "type": "int", "strategy": "channel"}
FP8_ROWS = {"num_bits": 8, "type": "float", "strategy": "channel"}
AWQ = FORMATS["awq"].config


def refusal(config: Any) -> str:
    file = ConfigFile(Path("model/config.json"), {"quantization_config": config})
    with pytest.raises(ModelLoadError) as caught:
        describe_quantization(file)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("model/config.json")
    return str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"bits": 4}, "quant_method is missing; it must be one of compressed-tensors, gptq, awq, fp8, modelopt"),
        ("int4", "quantization_config must be an object"),
        ({"quant_method": "bitsandbytes"}, "not 'bitsandbytes'"),
        ({"quant_method": ["gptq"]}, "quant_method must be one of"),
        (compressed("nvfp4-pack-quantized", {"num_bits": 4, "type": "float"}), "not 'nvfp4-pack-quantized'"),
        (compressed("marlin-24", INT8), "format must be"),
        (compressed("dense", INT8), "format must be"),
        (compressed("int-quantized", {**INT8, "num_bits": 6}), "num_bits must be 4 or 8, not 6"),
        (compressed("int-quantized", FP8_ROWS), "type must be 'int', not 'float'"),
        (compressed("pack-quantized", {**INT8, "num_bits": 3}), "num_bits must be 4 or 8, not 3"),
        (compressed("pack-quantized", {**INT8, "strategy": "tensor_group"}), "strategy must be"),
        (compressed("pack-quantized", {**INT8, "strategy": "group"}), "group_size is missing"),
        (compressed("float-quantized", {**FP8_ROWS, "strategy": "block"}), "block_structure is missing"),
        (compressed("int-quantized", INT8, {**TOKEN, "strategy": "tensor"}), "strategy must be 'token', not 'tensor'"),
        (compressed("int-quantized", INT8, {**TOKEN, "dynamic": "local"}), "dynamic must be true or false"),
        (compressed("int-quantized", INT8, {**TOKEN, "dynamic": False}), "strategy must be 'tensor', not 'token'"),
        (compressed("int-quantized", INT8, kv_cache_scheme={"num_bits": 8}), "a quantized KV cache is not supported"),
        (compressed("int-quantized", INT8, quantization_status="frozen"), "quantization_status must be 'compressed'"),
        (compressed("int-quantized", INT8, transform_config={"config_groups": {"u": {}}}), "transform_config"),
        (compressed("int-quantized", INT8, sparsity_config={"format": "sparse-24-bitmask"}), "sparse-24-bitmask"),
        (compressed("int-quantized", INT8, config_groups={}), "config_groups must be an object with at least one"),
        (compressed("int-quantized", INT8, ignore=["re:("]), "'re:(' is none"),
        (compressed("int-quantized", INT8, ignore="lm_head"), "ignore must be a list of names"),
        (compressed("int-quantized", {**INT8, "dynamic": True}), "dynamic must be null"),
        (gptq_config(bits=3), "bits must be 2 or 4 or 8, not 3"),
        (gptq_config(bits=4.0), "bits must be"),
        (gptq_config(group_size=0), "group_size must be an integer of at least 1"),
        (gptq_config(checkpoint_format="marlin"), "checkpoint_format must be 'gptq' or 'gptq_v2', not 'marlin'"),
        (gptq_config(pack_dtype="int8"), "pack_dtype must be 'int32'"),
        (gptq_config(dynamic={"-:(": {}}), "dynamic must be regular expressions"),
        (gptq_config(dynamic={"+:.*down.*": {"bits": 8}}), "+:.*down.* must be left out: other settings for some"),
        ({**AWQ, "version": "gemv"}, "version must be 'gemm', not 'gemv'"),
        ({**AWQ, "bits": 8}, "bits must be 4, not 8"),
        ({**AWQ, "zero_point": False}, "zero_point must be true"),
        ({**FP8, "activation_scheme": "none"}, "activation_scheme must be 'dynamic' or 'static'"),
        ({**FP8, "weight_block_size": [128]}, "weight_block_size must be two positive integers"),
        ({**FP8, "scale_fmt": "ue8m0"}, "scale_fmt must be 'float'"),
        ({**FP8, "fmt": "e5m2"}, "fmt must be 'e4m3'"),
        ({"quant_method": "modelopt", **MODELOPT, "quant_algo": "NVFP4"}, "quant_algo must be 'FP8', not 'NVFP4'"),
        ({"quant_method": "modelopt", **MODELOPT, "kv_cache_quant_algo": "FP8"}, "a quantized KV cache"),
    ],
)  # fmt: skip
def test_an_unknown_scheme_is_named(config: Any, message: str) -> None:
    assert message in refusal(config)


@st.composite
def damaged_configs(draw: st.DrawFn) -> Any:
    """A good config with one value, at any depth, replaced."""
    config = json.loads(json.dumps(draw(st.sampled_from([form.config for form in FORMATS.values() if form.config]))))
    place = config
    while True:
        key = draw(st.sampled_from(list(place)))
        if not isinstance(place[key], dict) or not place[key] or draw(st.booleans()):
            break
        place = place[key]
    scalars = st.none() | st.booleans() | st.integers(-2, 300) | st.floats() | st.text(max_size=5)
    place[key] = draw(
        scalars
        | st.sampled_from(["re:(", "re:a{999999999999}", "-:(", "channel", "block", "tensor", "gptq_v2"])
        | st.lists(scalars, max_size=3)
        | st.dictionaries(st.sampled_from(["-:(", "weights", "type", "format"]), scalars, max_size=2)
    )
    return config


@given(damaged_configs())
def test_a_damaged_config_is_read_or_refused_in_one_line(config: Any) -> None:
    """An operator would meet a traceback that names neither file nor key."""
    refused = ""
    try:
        found = describe_quantization(ConfigFile(Path("config.json"), {"quantization_config": config}))
    except ModelLoadError as error:
        refused = str(error)
    else:
        assert found is not None
        found.scheme_of("encoder.layers.0.mlp.up_proj")
    assert "\n" not in refused


def test_the_shape_alone_is_read_whatever_the_quantization() -> None:
    """Families describe shapes; only who loads weights may refuse how they are stored."""
    config = ConfigFile(Path("config.json"), tiny_config(quantization_config={"quant_method": "unheard-of"}))
    assert describe_model(config, ConfigFile(Path("none"), {})).config.num_layers == 2


def test_a_file_beside_config_json_is_not_overlooked(tmp_path: Path) -> None:
    """Older exports say only there how they are quantized."""
    write_quantized(tmp_path, FORMATS["modelopt-beside"])
    beside = tmp_path / "hf_quant_config.json"
    told = json.loads(beside.read_text())
    for quantization, message in (
        ({"quant_algo": "W4A8_AWQ"}, "hf_quant_config.json/quantization: quant_algo must be 'FP8', not 'W4A8_AWQ'"),
        ({**told["quantization"], "kv_cache_quant_algo": "FP8"}, "a quantized KV cache is not supported"),
    ):
        beside.write_text(json.dumps({**told, "quantization": quantization}))
        assert message in failure(tmp_path)
    beside.write_text(json.dumps({"producer": {"name": "else"}, "quantization": {}}))
    assert "must be ModelOpt's" in failure(tmp_path)


def failure(directory: Path) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_model(directory, device=CPU)
    assert "\n" not in str(caught.value)
    return str(caught.value)


UP = "encoder.layers.1.mlp.up_proj."
Change = Callable[[Tensors], None]


def drop(suffix: str) -> Change:
    return lambda tensors: tensors.__delitem__(UP + suffix)


def put(suffix: str, value: torch.Tensor) -> Change:
    return lambda tensors: tensors.__setitem__(UP + suffix, value)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("ct-int8", drop("weight_scale"), f"{UP}weight is stored as I8"),
        ("ct-int8", drop("weight"), f"{UP}weight missing"),
        ("ct-int8", put("weight_scale", torch.ones(47, 1)), "weight_scale has shape (47, 1)"),
        ("ct-int8", put("weight_scale", torch.ones(48, 1, dtype=torch.int8)), "weight_scale is stored as int8"),
        ("ct-int8", put("weight", torch.ones(48, 32)), f"{UP}weight is stored as float32; int8 a scale a row needs"),
        ("ct-int8", put("weight", torch.ones(32, 48, dtype=torch.int8)), "makes it (48, 32)"),
        ("ct-int8-asymmetric", drop("weight_zero_point"), "it is not symmetric, and has no weight_zero_point"),
        ("ct-int4-in-bytes", put("weight", torch.full((48, 32), 8).to(torch.int8)), "weight has elements from 8 to 8"),
        ("ct-int4", put("weight_shape", torch.tensor([48, 40])), "weight_shape is (48, 40)"),
        ("ct-int4", put("weight", torch.ones(48, 32)), "are both the weight of encoder.layers.1.mlp.up_proj"),
        ("ct-int4-groups", put("weight_scale", torch.ones(48, 1)), "weight_scale has shape (48, 1)"),
        ("ct-int4-any-order", put("weight_g_idx", torch.full((32,), 2)), "weight_g_idx names groups from 2 to 2 of 2"),
        ("ct-fp8-rows", put("weight", torch.ones(48, 32, dtype=torch.float8_e5m2)), "is stored as float8_e5m2"),
        ("ct-fp8-blocks", put("weight_scale", torch.ones(1, 2)), "weight_scale has shape (1, 2)"),
        ("ct-fp8-static", put("k_scale", torch.ones(1)), f"1 unexpected: {UP}k_scale"),
        ("gptq", drop("qzeros"), f"{UP}qzeros missing"),
        ("gptq-any-order", put("g_idx", torch.full((32,), -5)), "g_idx names groups from -5 to -5"),
        ("gptq", put("g_idx", torch.arange(32) % 2), "g_idx is in another order than the quantization config says"),
        ("gptq", put("qzeros", torch.zeros(2, 6, dtype=torch.int32)), "it is symmetric, but there are zero points"),
        ("gptq", put("qweight", torch.ones(8, 48, dtype=torch.int32)), "qweight has shape (8, 48)"),
        ("awq", drop("scales"), f"{UP}scales missing"),
        ("awq", drop("qweight"), f"1 missing: {UP}weight"),
        ("modelopt", put("weight_scale", torch.ones(2)), "weight_scale has shape (2,)"),
        ("fp8-blocks", drop("weight_scale_inv"), f"{UP}weight is stored as F8_E4M3"),
    ],
)  # fmt: skip
def test_tensors_that_contradict_the_scheme_are_named(name: str, change: Change, message: str, tmp_path: Path) -> None:
    """A damaged or mislabelled checkpoint would load as noise."""
    write_quantized(tmp_path, FORMATS[name])
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    write_weights(tmp_path, tensors)
    found = failure(tmp_path)
    assert message in found
    assert str(tmp_path) in found


def rewrite_config(directory: Path, **changes: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"].update(changes)
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("ct-int8", {"ignore": ["re:.*up_proj"]}, "has no scheme for encoder.layers.0.mlp.up_proj"),
        ("ct-int8", {"ignore": ["encoder.layers.0"]}, "has no scheme for encoder.layers.0."),
        ("gptq", {"group_size": 32}, "qzeros has shape (2, 8); int4 in groups of 32"),
        ("gptq", {"bits": 8}, "has shape"),
        ("gptq", {"dynamic": {"-:.*down_proj": {}}}, "has no scheme for encoder.layers.0.mlp.down_proj"),
        ("awq", {"modules_to_not_convert": ["o_proj"]}, "has no scheme for encoder.layers.0.self_attn.o_proj"),
        ("fp8-blocks", {"weight_block_size": [64, 64]}, "weight_scale_inv has shape"),
    ],
)
def test_a_config_that_contradicts_the_tensors_is_refused(
    name: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """Which of the two is right cannot be guessed."""
    write_quantized(tmp_path, FORMATS[name])
    rewrite_config(tmp_path, **changes)
    assert message in failure(tmp_path)


def test_outputs_that_do_not_fill_a_word_are_refused() -> None:
    """The last zero points would be read past the end, or be of other rows."""
    scheme = describe_quantization(ConfigFile(Path("config.json"), {"quantization_config": AWQ}))
    assert scheme is not None
    for name in ("awq", "gptq"):
        tensors, _ = FORMATS[name].write(torch.randn(44, 32))
        parts = Parts("up", replace(scheme.groups[0].scheme, layout=name), tensors, (44, 32))
        with pytest.raises(ModelLoadError, match="44 outputs are no multiple of 8"):
            LAYOUTS[name].read(parts)


def test_a_tied_head_that_is_quantized_beside_the_embedding_is_refused(tmp_path: Path) -> None:
    """One of the two would be dropped silently."""
    form = FORMATS["ct-int8-packed"]
    plain = write_quantized(tmp_path, form, tie_word_embeddings=True)
    rewrite_config(tmp_path, ignore=[])
    tensors = load_file(tmp_path / "model.safetensors")
    parts, _ = form.write(plain["encoder.embed_tokens.weight"])
    tensors |= {f"diffusion_head.{suffix}": part for suffix, part in parts.items()}
    write_weights(tmp_path, tensors)
    assert "diffusion_head.weight differs from the embedding" in failure(tmp_path)
