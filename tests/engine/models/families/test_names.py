"""Tensor names of families. If one fails, a checkpoint that other software reads is refused, or loads as noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import ModelLoadError
from engine.models.families import registry
from engine.models.families.description import ConfigKeys, ModelDescription, read_decoder_config
from engine.models.families.names import WeightNames
from engine.models.families.nemotron import NAMES, describe_nemotron_labs_diffusion
from engine.models.families.overrides import Overrides
from engine.models.files import ConfigFile
from engine.models.loader import load_model
from tests.reference.checkpoints import Tensors, tiny_config, write_checkpoint

CPU = torch.device("cpu")

RENAMED = WeightNames(
    body_prefixes=("model.transformer.",),
    heads=("model.transformer.ff_out.weight",),
    layers="blocks",
    body={"wte.weight": "embed_tokens.weight", "ln_f.weight": "norm.weight"},
    layer={
        "attn_norm.weight": ("input_layernorm.weight",),
        "ff_norm.weight": ("post_attention_layernorm.weight",),
        "att_proj.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
        "attn_out.weight": ("self_attn.o_proj.weight",),
        "ff_proj.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
        "ff_out.weight": ("mlp.down_proj.weight",),
    },
)
"""A made-up family that names everything in another way and fuses what this project fuses, too."""


def renamed(tensors: Tensors) -> Tensors:
    """The tensors of the published family as the made-up one would store them."""
    found: Tensors = {}
    for name, tensor in tensors.items():
        (wanted,) = NAMES.decoder_names(name)
        own = RENAMED.published_name(wanted)
        # q, k, v and gate, up come in this order in the published names of a layer.
        found[own] = torch.cat((found[own], tensor)) if own in found else tensor
    return found


def describe(config: ConfigFile, generation: ConfigFile, overrides: Overrides) -> ModelDescription:
    published = describe_nemotron_labs_diffusion(config, generation, overrides)
    return ModelDescription(config=published.config, spec=published.spec, names=RENAMED)


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The same weights in the published layout and in the made-up family's."""
    published = write_checkpoint(tmp_path / "published")
    other = write_checkpoint(tmp_path / "other", architectures=["MadeUpModel"])
    made_up = registry.Family(describe=describe, architectures=("MadeUpModel",))
    monkeypatch.setattr(registry, "FAMILIES", {**registry.FAMILIES, "made_up": made_up})
    ordered = sorted(load_file(published / "model.safetensors").items(), key=_fused_order)
    save_file(renamed(dict(ordered)), other / "model.safetensors")
    return published, other


def _fused_order(entry: tuple[str, torch.Tensor]) -> int:
    letters = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    return next((i for i, letter in enumerate(letters) if letter in entry[0]), 9)


def test_a_family_with_other_names_and_fused_tensors_loads_the_same_weights(checkpoints: tuple[Path, Path]) -> None:
    published, other = checkpoints
    assert "model.transformer.blocks.1.att_proj.weight" in load_file(other / "model.safetensors")
    expected, found = (load_model(directory, device=CPU).decoder.tensors() for directory in (published, other))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_a_missing_fused_tensor_is_named_once_by_its_own_name(checkpoints: tuple[Path, Path]) -> None:
    path = checkpoints[1] / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.transformer.blocks.0.att_proj.weight"]
    save_file(tensors, path)
    with pytest.raises(ModelLoadError, match=r"1 missing: model\.transformer\.blocks\.0\.att_proj\.weight\.$"):
        load_model(checkpoints[1], device=CPU)


def test_a_fused_tensor_of_the_wrong_shape_is_named_with_what_all_its_parts_come_to(
    checkpoints: tuple[Path, Path],
) -> None:
    path = checkpoints[1] / "model.safetensors"
    tensors = load_file(path)
    tensors["model.transformer.blocks.0.ff_proj.weight"] = torch.zeros(95, 32)
    save_file(tensors, path)
    with pytest.raises(ModelLoadError, match=r"ff_proj.weight has shape \(95, 32\); config.json makes it \(96, 32\)"):
        load_model(checkpoints[1], device=CPU)


def test_a_fused_tensor_beside_one_of_its_parts_is_refused(checkpoints: tuple[Path, Path]) -> None:
    """Which of the two is right cannot be guessed."""
    path = checkpoints[1] / "model.safetensors"
    tensors = load_file(path)
    tensors["model.transformer.blocks.0.self_attn.k_proj.weight"] = torch.zeros(32, 32)
    save_file(tensors, path)
    with pytest.raises(ModelLoadError, match=r"are both model\.transformer\.blocks\.0\.att_proj\.weight"):
        load_model(checkpoints[1], device=CPU)


def test_an_adapter_is_named_after_the_matrix_it_belongs_to() -> None:
    for name in ("blocks.3.attn_out.lora_A.weight", "blocks.3.attn_out.lora_A.default.weight"):
        wanted = RENAMED.adapter_names("base_model.model.model.transformer." + name)
        assert wanted == ("layers.3.self_attn.o_proj.lora_A.weight",)


@pytest.mark.parametrize("name", ["embed_tokens.weight", "norm.weight", "layers.7.mlp.down_proj.weight"])
@pytest.mark.parametrize("names", [NAMES, RENAMED])
def test_a_published_name_is_read_back(names: WeightNames, name: str) -> None:
    assert names.decoder_names(names.published_name(name)) == (name,)


def test_a_config_may_name_its_keys_otherwise() -> None:
    """Families call the same sizes d_model and n_heads."""
    keys = ConfigKeys(hidden_size="d_model", num_heads="n_heads", num_kv_heads="n_kv_heads", num_layers="n_layers")
    values: dict[str, Any] = tiny_config()
    expected = read_decoder_config(ConfigFile(Path("config.json"), tiny_config()))
    for ours, theirs in (("hidden_size", "d_model"), ("num_attention_heads", "n_heads"),
                         ("num_key_value_heads", "n_kv_heads"), ("num_hidden_layers", "n_layers")):  # fmt: skip
        values[theirs] = values.pop(ours)
    assert read_decoder_config(ConfigFile(Path("config.json"), values), keys) == expected
    values["n_kv_heads"] = 3
    with pytest.raises(ModelLoadError, match=r"n_kv_heads must be a divisor of n_heads \(4\), not 3"):
        read_decoder_config(ConfigFile(Path("config.json"), values), keys)


def test_a_family_sets_its_traits() -> None:
    """Norms and biases that a family has and no key of its config tells of."""
    config = ConfigFile(Path("config.json"), tiny_config(attention_bias=True))
    found = read_decoder_config(config, qk_norm=True, qkv_bias=True)
    assert (found.qk_norm, found.qkv_bias) == (True, True)
    with pytest.raises(ModelLoadError, match="attention_bias must be false"):
        read_decoder_config(config)
