"""LLaDA's and Dream's published checkpoints. If one fails, one of them is refused, or another model loads as noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import ModelLoadError
from engine.models.families.description import ModelDescription
from engine.models.families.overrides import Overrides
from engine.models.families.registry import describe_model
from engine.models.files import ConfigFile
from engine.models.loader import load_model
from tests.reference.bidirectional.checkpoints import (
    EOS,
    MASK,
    dream_config,
    llada_config,
    module_of,
    published_names,
    write_whole_checkpoint,
)
from tests.reference.checkpoints import write_weights

CPU = torch.device("cpu")
CONFIGS = {"llada": llada_config, "dream": dream_config}


def describe(
    name: str, generation: dict[str, Any] | None = None, directory: Path = Path("model"), **overrides: Any
) -> ModelDescription:
    config = ConfigFile(directory / "config.json", CONFIGS[name](**overrides))
    return describe_model(config, ConfigFile(directory / "generation_config.json", generation or {}))


def test_llada_8b_is_read_as_published() -> None:
    """Its keys are OLMo's; `mlp_ratio` means nothing beside `mlp_hidden_size`."""
    description = describe(
        "llada", d_model=4096, n_heads=32, n_kv_heads=32, n_layers=32, mlp_hidden_size=12288, vocab_size=126464,
        embedding_size=126464, max_sequence_length=4096, mask_token_id=126336, eos_token_id=126081, pad_token_id=126081,
    )  # fmt: skip
    config, spec = description.config, description.spec
    assert (config.hidden_size, config.q_dim, config.kv_dim, config.head_dim) == (4096, 4096, 4096, 128)
    assert (config.intermediate_size, config.num_layers, config.max_positions) == (12288, 32, 4096)
    assert (config.rope.theta, config.qkv_bias, config.tied_head) == (500000.0, False, False)
    assert (spec.sees_whole_text, spec.logit_shift, spec.decodings) == (True, False, ("diffusion",))
    assert (spec.block_length, spec.default_threshold, spec.remaskings[0]) == (32, None, "low_confidence")
    assert (spec.mask_token_id, spec.end_token_ids, spec.banned_token_ids) == (126336, (126081,), (126336,))


def test_dream_7b_is_read_as_published() -> None:
    """Qwen2's shape with biases of q, k and v, which no key tells; logits are shifted by one."""
    description = describe(
        "dream", {"alg": "entropy", "eos_token_id": 151643}, hidden_size=3584, intermediate_size=18944,
        num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4, vocab_size=152064, mask_token_id=151666,
        max_position_embeddings=131072, pad_token_id=151643, eos_token_id=151643, bos_token_id=151643,
    )  # fmt: skip
    config, spec = description.config, description.spec
    assert (config.q_dim, config.kv_dim, config.head_dim, config.qkv_bias) == (3584, 512, 128, True)
    assert (spec.sees_whole_text, spec.logit_shift, spec.decodings) == (True, True, ("diffusion",))
    assert spec.remaskings == ("entropy", "origin", "maskgit_plus", "topk_margin")
    assert (spec.block_length, spec.default_threshold) == (0, None)
    assert describe("dream").spec.remaskings[0] == "origin"
    assert describe("dream", sliding_window=32768).config == describe("dream").config


@pytest.mark.parametrize(("name", "text"), [("llada", "<|eot_id|>"), ("dream", "<|im_end|>")])
def test_the_end_of_a_turn_ends_an_answer(tmp_path: Path, name: str, text: str) -> None:
    """No config names it, the tokenizer does: an answer of a chat would go on into the user's next turn."""
    assert describe(name, directory=tmp_path).spec.end_token_ids == (EOS,)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"id": 7, "content": text}]}))
    assert describe(name, directory=tmp_path).spec.end_token_ids == (EOS, 7)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_type", "sequential"), ("block_type", None), ("activation_type", "gelu"), ("layer_norm_type", "default"),
        ("rope", False), ("rope", None), ("include_bias", True), ("include_bias", None), ("weight_tying", True),
        ("include_qkv_bias", True), ("attention_layer_norm", True), ("input_emb_norm", True), ("scale_logits", True),
        ("alibi", True), ("multi_query_attention", True), ("block_group_size", 2), ("rope_full_precision", False),
        ("embedding_size", 128), ("mlp_hidden_size", None), ("rope_theta", None), ("mask_token_id", None),
        ("num_experts", 64),
    ],
)  # fmt: skip
def test_another_architecture_under_lladas_name_is_refused(key: str, value: Any) -> None:
    """Every one of these changes all logits: the text would be plausible nonsense."""
    with pytest.raises(ModelLoadError, match=rf"config\.json: {key} ") as caught:
        describe("llada", **{key: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"block_size": 32}, "block_size belongs to models that decode by blocks"),
        ({"expand_token_id": 9}, "expand_token_id belongs to models that insert and delete masks"),
        ({"use_sliding_window": True, "sliding_window": 64}, "sliding_window must be null"),
        ({"mask_token_id": None}, "mask_token_id is missing"),
        ({"mask_token_id": 96}, "mask_token_id 96 is outside the vocabulary"),
    ],
)
def test_another_model_under_dreams_name_is_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        describe("dream", **overrides)


def test_an_unknown_order_in_the_generation_config_is_refused() -> None:
    with pytest.raises(ModelLoadError, match=r"generation_config\.json: alg must be one of origin, .*, not 'magic'"):
        describe("dream", {"alg": "magic"})


def test_what_the_operator_says_goes_first() -> None:
    overrides = Overrides(family="llada", block_length=8, mask_token_id=11)
    config = ConfigFile(Path("config.json"), llada_config(architectures=["Renamed"], mask_token_id=None))
    spec = describe_model(config, ConfigFile(Path("generation_config.json"), {}), overrides).spec
    assert (spec.family, spec.block_length, spec.mask_token_id) == ("llada", 8, 11)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_published_tensor_is_read(tmp_path: Path, name: str, shards: int) -> None:
    """The head and LLaDA's down projections are both called ff_out: mixed up, the model would load as noise."""
    directory = write_whole_checkpoint(tmp_path, CONFIGS[name](), shards=shards)
    loaded = load_model(directory, device=CPU, dtype=torch.float64).decoder.tensors()
    module = module_of(CONFIGS[name]())
    assert {key.removeprefix("model.") for key in module.state_dict()} == set(loaded)


@pytest.mark.parametrize("name", CONFIGS)
def test_missing_and_unexpected_tensors_are_named(tmp_path: Path, name: str) -> None:
    config = CONFIGS[name]()
    write_whole_checkpoint(tmp_path, config)
    tensors = published_names(config, dict(module_of(config).state_dict()))
    victim = next(key for key in tensors if "1." in key and "v_proj" in key)
    kept = {key: tensor.contiguous() for key, tensor in tensors.items() if key != victim}
    write_weights(tmp_path, kept)
    with pytest.raises(ModelLoadError, match=victim.replace(".", r"\.")):
        load_model(tmp_path, device=CPU)
    stray = victim.replace("v_proj", "q_norm")
    write_weights(tmp_path, {**tensors, stray: torch.ones(4)})
    with pytest.raises(ModelLoadError, match=stray.replace(".", r"\.")):
        load_model(tmp_path, device=CPU)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_truncated_shard_is_one_clear_line(tmp_path: Path, name: str) -> None:
    directory = write_whole_checkpoint(tmp_path, CONFIGS[name](), shards=2)
    shard = directory / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match=shard.name) as caught:
        load_model(directory, device=CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_alone_is_enough_for_a_dummy(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[name]()))
    model = load_model(tmp_path, load_format="dummy", device=CPU)
    assert model.spec.mask_token_id == MASK
