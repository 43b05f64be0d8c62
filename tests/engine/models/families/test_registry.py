"""Reading config.json. If one fails, a published checkpoint is refused, or a wrong one is served as noise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ModelLoadError
from engine.models.families.description import ModelDescription
from engine.models.families.registry import describe_model
from engine.models.files import ConfigFile, model_directory
from engine.models.rope import QueryScaling
from tests.reference.checkpoints import tiny_config

YARN = tiny_config()["rope_parameters"]


def describe(generation: dict[str, Any] | None = None, **overrides: Any) -> ModelDescription:
    config = ConfigFile(Path("model/config.json"), tiny_config(**overrides))
    return describe_model(config, ConfigFile(Path("model/generation_config.json"), generation or {}))


def test_published_8b_shape_is_read_as_written() -> None:
    """The 8B's own numbers, head size not hidden / heads in general: the model a user came for would not load."""
    description = describe(
        vocab_size=131072,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=34,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=262144,
        rope_parameters={**YARN, "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384},
        mask_token_id=100,
        block_size=32,
    )
    config, spec = description.config, description.spec
    assert (config.q_dim, config.kv_dim, config.num_layers, config.tied_head) == (4096, 1024, 34, False)
    assert config.rope.kind == "yarn"
    assert config.rope.theta == 1e6
    assert config.rope.query_scaling == QueryScaling(beta=0.1, original_max_positions=16384)
    assert (spec.mask_token_id, spec.block_length, spec.context_attention) == (100, 32, "causal")


def test_end_tokens_are_the_union_of_both_files() -> None:
    """Ints and lists, in either file: an answer would not stop at an end token that only one file names."""
    assert describe({"eos_token_id": [7, 2]}, eos_token_id=2).spec.end_token_ids == (2, 7)
    assert describe({"eos_token_id": 3}, eos_token_id=[2, 4]).spec.end_token_ids == (2, 4, 3)
    assert describe({"eos_token_id": 3}, eos_token_id=None).spec.end_token_ids == (3,)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (500, "eos_token_id 500 is outside the vocabulary of 96"),
        ([2, 96], "eos_token_id 96 is outside the vocabulary of 96"),
        (-1, "eos_token_id must be a token id or a list of token ids, not -1"),
        ([2, "3"], "eos_token_id must be a token id or a list of token ids, not [2, '3']"),
        (True, "eos_token_id must be a token id or a list of token ids, not True"),
    ],
)
@pytest.mark.parametrize("other", [2, 95])
def test_a_bad_end_token_is_blamed_on_the_file_that_holds_it(value: Any, message: str, other: int) -> None:
    """An operator would search the wrong file for a value that is not in it."""
    with pytest.raises(ModelLoadError) as caught:
        describe({"eos_token_id": value}, eos_token_id=other)
    assert str(caught.value).startswith(f"model/generation_config.json: {message}")
    with pytest.raises(ModelLoadError) as caught:
        describe({"eos_token_id": other}, eos_token_id=value)
    assert str(caught.value).startswith(f"model/config.json: {message}")


@pytest.mark.parametrize("key", ["mask_token_id", "pad_token_id", "bos_token_id"])
def test_other_special_tokens_are_those_of_the_config(key: str) -> None:
    """A stray value of a file that is not read for this token would refuse a good model, or be blamed for another."""
    assert describe({key: 500}).spec == describe().spec
    for value, message in ((96, f"{key} 96 is outside"), (-1, f"{key} must be"), ("5", f"{key} must be")):
        with pytest.raises(ModelLoadError) as caught:
            describe({key: 5}, **{key: value})
        assert str(caught.value).startswith(f"model/config.json: {message}")


def test_mask_and_padding_are_banned_but_not_a_padding_that_ends_text() -> None:
    """A user would read mask or padding text, or an answer could never end."""
    assert describe().spec.banned_token_ids == (5, 0)
    assert describe(pad_token_id=2).spec.banned_token_ids == (5,)


def test_older_rope_keys_are_a_fallback() -> None:
    """Top-level rope_theta and rope_scaling with `type`: an older writer's checkpoint would be refused."""
    scaling = {key: value for key, value in YARN.items() if key not in ("rope_type", "rope_theta")}
    old = describe(rope_parameters=None, rope_theta=10000.0, rope_scaling={**scaling, "type": "yarn"}).config.rope
    assert old == describe().config.rope
    plain = describe(rope_parameters=None, rope_theta=5000.0).config.rope
    assert (plain.kind, plain.theta, plain.query_scaling) == ("default", 5000.0, None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "GemmaForCausalLM is not supported. Supported: NemotronLabs"),
        ({"architectures": None}, "architectures is missing"),
        ({"hidden_size": None}, "hidden_size is missing; it must be an integer"),
        ({"hidden_size": "32"}, "hidden_size must be an integer of at least 1, not '32'"),
        ({"num_key_value_heads": 3}, "num_key_value_heads must be a divisor of num_attention_heads"),
        ({"head_dim": 15}, "head_dim must be even, not 15"),
        ({"rms_norm_eps": 0}, "rms_norm_eps must be a positive number"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false"),
        ({"mask_token_id": None}, "mask_token_id is missing"),
        ({"mask_token_id": 96}, "mask_token_id 96 is outside the vocabulary of 96"),
        ({"eos_token_id": 500}, "eos_token_id 500 is outside the vocabulary"),
        ({"eos_token_id": "2"}, "eos_token_id must be a token id or a list"),
        ({"bos_token_id": [1, 2]}, "bos_token_id must be one token id"),
        ({"block_size": None}, "block_size is missing"),
        ({"hidden_act": "gelu"}, "hidden_act must be silu, not 'gelu'"),
        ({"sliding_window": 64}, "sliding_window must be null"),
        ({"attention_bias": True}, "attention_bias must be false"),
        ({"rope_parameters": "yarn"}, "rope_parameters must be an object"),
        ({"rope_parameters": None}, "rope_theta is missing"),
        ({"rope_parameters": {**YARN, "rope_type": "dynamic"}}, "'dynamic' is not supported. Supported: default"),
        ({"rope_parameters": {**YARN, "factor": None}}, "'yarn' needs factor"),
        ({"rope_parameters": {**YARN, "factor": "16"}}, "factor must be a number, not '16'"),
        ({"rope_parameters": {**YARN, "partial_rotary_factor": 0.5}}, "partial_rotary_factor must be 1"),
    ],
)
def test_bad_config_is_one_line_naming_key_and_value(overrides: dict[str, Any], message: str) -> None:
    """An operator would get a traceback, or a model that answers noise."""
    with pytest.raises(ModelLoadError) as caught:
        describe(**overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_model_directory_names_what_is_missing(tmp_path: Path) -> None:
    """A mistyped path would be a traceback."""
    assert model_directory(str(tmp_path)) == tmp_path
    assert (model_directory("builtin") / "config.json").exists()
    with pytest.raises(ModelLoadError, match=r"no model directory .*nowhere"):
        model_directory(str(tmp_path / "nowhere"))


def test_finding_a_model_needs_no_torch() -> None:
    """The API process finds templates and tokenizers this way: it would take seconds and hundreds of megabytes."""
    code = "import sys, engine.models.files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
