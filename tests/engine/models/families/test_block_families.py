"""Reading checkpoints of families whose context is encoded by blocks. If one fails, a published checkpoint is refused,
or another family's is served with the wrong attention, which gives plausible nonsense."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import ModelLoadError
from engine.models.families.description import ModelDescription
from engine.models.families.overrides import NO_OVERRIDES, Overrides
from engine.models.families.registry import FAMILIES, describe_model
from engine.models.files import ConfigFile
from engine.models.loader import LoadedModel, load_model
from tests.reference.block_checkpoints import (
    BACKBONES,
    block_config,
    random_block_tensors,
    write_block_checkpoint,
)
from tests.reference.checkpoints import EOS, MASK, tiny_config

CPU = torch.device("cpu")
EVERY = sorted(BACKBONES)


def load(directory: Path, **options: Any) -> LoadedModel:
    return load_model(directory, device=CPU, **options)


def refusal(directory: Path, **options: Any) -> str:
    """The one line that an operator reads."""
    with pytest.raises(ModelLoadError) as caught:
        load(directory, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def describe(directory: Path, config: dict[str, Any], overrides: Overrides = NO_OVERRIDES) -> ModelDescription:
    """Of a config.json alone, with no tokenizer beside it."""
    return describe_model(ConfigFile(directory / "config.json", config), ConfigFile(directory / "none", {}), overrides)


def test_sdars_published_config_is_read_as_written(tmp_path: Path) -> None:
    """The 4B's own numbers. It names neither mask nor block length: the tokenizer and the operator do."""
    published = {
        "architectures": ["SDARForCausalLM"], "model_type": "sdar", "attention_bias": False, "bos_token_id": 151643,
        "eos_token_id": 151643, "pad_token_id": 151643, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2560,
        "intermediate_size": 9728, "max_position_embeddings": 32768, "num_attention_heads": 32,
        "num_hidden_layers": 36, "num_key_value_heads": 8, "rms_norm_eps": 1e-6, "rope_scaling": None,
        "rope_theta": 1000000, "sliding_window": None, "use_sliding_window": False, "tie_word_embeddings": False,
        "vocab_size": 151936, "max_window_layers": 36,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(published))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [151645, 151643]}))
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"id": 151669, "content": "<|MASK|>"}]}))
    files = [ConfigFile.read(tmp_path / name) for name in ("config.json", "generation_config.json")]
    with pytest.raises(ModelLoadError, match=r"block_size is missing; .* --block-length gives it \(4 for SDAR"):
        describe_model(*files)
    description = describe_model(*files, Overrides(block_length=4))
    config, spec = description.config, description.spec
    assert (config.q_dim, config.kv_dim, config.qk_norm, config.qkv_bias) == (4096, 1024, True, False)
    assert (spec.mask_token_id, spec.block_length, spec.end_token_ids) == (151669, 4, (151643, 151645))
    assert (spec.decodings, spec.default_decoding, spec.can_infill) == (("diffusion",), "diffusion", False)
    assert spec.banned_token_ids == (151669,), "the padding token also ends a text"


@pytest.mark.parametrize("family", EVERY)
def test_a_checkpoint_fills_the_decoder(family: str, tmp_path: Path) -> None:
    """Every tensor under its published name, in the place that transformers gives it."""
    model = load(write_block_checkpoint(tmp_path, family))
    tensors = load_file(tmp_path / "model.safetensors")
    assert model.spec.family == family
    assert (model.spec.mask_token_id, model.spec.end_token_ids) == (MASK, (EOS,))
    for name, loaded in model.decoder.tensors().items():
        stored = "lm_head.weight" if name == "lm_head.weight" else f"model.{name}"
        assert torch.equal(loaded, tensors.pop(stored)), name
    assert not tensors


@pytest.mark.parametrize("family", EVERY)
def test_missing_and_unexpected_tensors_are_named(family: str, tmp_path: Path) -> None:
    write_block_checkpoint(tmp_path, family)
    tensors = load_file(tmp_path / "model.safetensors")
    lost = "model.layers.1.self_attn.k_proj.bias" if family == "fast_dllm_v2" else "model.layers.1.mlp.up_proj.weight"
    kept = {name: tensor for name, tensor in tensors.items() if name != lost}
    save_file(
        {**kept, "model.layers.1.mlp.spare.weight": tensors["model.norm.weight"].clone()},
        tmp_path / "model.safetensors",
    )
    message = refusal(tmp_path)
    assert lost in message
    assert "model.layers.1.mlp.spare.weight" in message


@pytest.mark.parametrize("family", EVERY)
def test_a_truncated_file_is_named(family: str, tmp_path: Path) -> None:
    path = write_block_checkpoint(tmp_path, family) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert str(path) in refusal(tmp_path)


@pytest.mark.parametrize("family", EVERY)
def test_a_mask_that_is_nowhere_has_to_be_given(family: str, tmp_path: Path) -> None:
    write_block_checkpoint(tmp_path, family, mask=False)
    assert re.search(r"mask_token_id is missing; it must be .*--mask-token-id", refusal(tmp_path))
    assert load(tmp_path, overrides=Overrides(mask_token_id=9)).spec.mask_token_id == 9
    assert "mask_token_id 96 is outside the vocabulary" in refusal(tmp_path, overrides=Overrides(mask_token_id=96))


@pytest.mark.parametrize("family", EVERY)
def test_a_config_alone_is_enough_for_random_weights(family: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(block_config(family)))
    model = load(tmp_path, load_format="dummy", overrides=Overrides(mask_token_id=MASK))
    assert model.decoder.num_parameters == sum(
        tensor.numel() for tensor in random_block_tensors(family, block_config(family)).values()
    )


@pytest.mark.parametrize("length", [2, 5, 128])
def test_an_architecture_that_others_name_too_is_not_enough(length: int, tmp_path: Path) -> None:
    """I-DLM's checkpoints name SDAR's architecture, and are causal."""
    config = block_config("sdar", block_size=length, mask_token_id=MASK)
    with pytest.raises(ModelLoadError, match=f"not {length}.*--model-family sdar"):
        describe(tmp_path, config)
    assert describe(tmp_path, config, Overrides(family="sdar")).spec.block_length == length


def test_only_the_operator_can_say_that_it_is_i_dlm(tmp_path: Path) -> None:
    """Its config.json is SDAR's, with a block size that is another thing: N is the published recipe's, or asked for."""
    config = block_config("sdar", block_size=3, mask_token_id=MASK)
    spec = describe(tmp_path, config, Overrides(family="idlm")).spec
    assert (spec.family, spec.block_length, spec.context_attention) == ("idlm", 4, "causal")
    assert (spec.decodings, spec.can_infill) == (("ar", "speculative", "auto"), False)
    assert describe(tmp_path, config, Overrides(family="idlm", block_length=8)).spec.block_length == 8
    with pytest.raises(ModelLoadError, match="--model-family idlm"):
        describe(tmp_path, config)
    with pytest.raises(ModelLoadError, match="or give --mask-token-id"):
        describe(tmp_path, block_config("sdar"), Overrides(family="idlm"))
    dummy = tmp_path / "dummy"
    dummy.mkdir()
    (dummy / "config.json").write_text(json.dumps(config))
    model = load(dummy, load_format="dummy", overrides=Overrides(family="idlm"))
    assert model.spec.drafts_causally


def test_block_lengths_are_the_operators_before_the_files(tmp_path: Path) -> None:
    for family in EVERY:
        config = block_config(family, mask_token_id=MASK)
        assert describe(tmp_path, config, Overrides(block_length=16)).spec.block_length == 16
    published = {family: describe(tmp_path, block_config(family, mask_token_id=MASK)).spec for family in EVERY}
    assert {family: spec.block_length for family, spec in published.items()} == {
        "sdar": 4, "stable_diffcoder": 4, "fast_dllm_v2": 32,
    }  # fmt: skip
    with pytest.raises(ModelLoadError, match="bd_size is missing"):
        describe(tmp_path, block_config("fast_dllm_v2", bd_size=..., mask_token_id=MASK))


def test_a_repacked_checkpoint_is_served_as_what_the_operator_says(tmp_path: Path) -> None:
    """Repacks of Stable-DiffCoder call themselves Llama."""
    config = block_config("stable_diffcoder", architectures=["LlamaForCausalLM"], mask_token_id=MASK)
    with pytest.raises(ModelLoadError, match=r"LlamaForCausalLM is not supported.*--model-family \(.*stable_diffcoder"):
        describe(tmp_path, config)
    assert describe(tmp_path, config, Overrides(family="stable_diffcoder")).spec.family == "stable_diffcoder"
    with pytest.raises(ModelLoadError, match=rf"model_family must be one of {', '.join(FAMILIES)}, not 'llama'"):
        describe(tmp_path, config, Overrides(family="llama"))


@pytest.mark.parametrize("architecture", ["Qwen3MoeForCausalLM", "Qwen2ForCausalLM", "LLaDA2_2ModelLM"])
def test_foreign_architectures_are_refused(architecture: str, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=f"architecture {architecture} is not supported"):
        describe(tmp_path, block_config("sdar", architectures=[architecture]))


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("sdar", "attention_bias", True), ("sdar", "num_experts", 128), ("stable_diffcoder", "mlp_bias", True),
        ("fast_dllm_v2", "use_sliding_window", True), ("fast_dllm_v2", "layer_types", ["sliding_attention"] * 2),
        ("fast_dllm_v2", "hidden_act", "gelu"), ("sdar", "sliding_window", 4096),
    ],
)  # fmt: skip
def test_what_would_change_every_logit_is_refused(family: str, key: str, value: Any, tmp_path: Path) -> None:
    config = block_config(family, **{"mask_token_id": MASK, key: value})
    if key == "sliding_window":
        config.pop("use_sliding_window")
    with pytest.raises(ModelLoadError, match="sliding_window|" + key):
        describe(tmp_path, config)


def test_overrides_reach_the_first_family_too(tmp_path: Path) -> None:
    spec = describe(tmp_path, tiny_config(), Overrides(block_length=16, mask_token_id=9)).spec
    assert (spec.family, spec.block_length, spec.mask_token_id) == ("nemotron_labs_diffusion", 16, 9)


@pytest.mark.parametrize("damaged", ["[]", "{", '{"added_tokens": 3}', '{"added_tokens": [3, {"id": "5"}]}'])
def test_a_damaged_tokenizer_hides_no_error(damaged: str, tmp_path: Path) -> None:
    write_block_checkpoint(tmp_path, "sdar")
    (tmp_path / "tokenizer.json").write_text(damaged)
    assert re.search(r"tokenizer\.json (must|cannot)|mask_token_id is missing", refusal(tmp_path))
