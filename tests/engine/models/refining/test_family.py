"""Reading DiffusionGemma's checkpoints. If one fails, a published checkpoint is refused, or loads as noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import ModelLoadError
from engine.models.families.description import ModelDescription
from engine.models.families.overrides import Overrides
from engine.models.families.registry import describe_model
from engine.models.files import ConfigFile
from engine.models.loader import load_model
from engine.models.spec import Refinement
from tests.reference.checkpoints import EOS
from tests.reference.refining.checkpoints import (
    CANVAS,
    GENERATION,
    TURN_END,
    VOCABULARY,
    published_config,
    write_refining_checkpoint,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as transformers writes it."""
    return write_refining_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


def describe(config: dict[str, Any], generation: dict[str, Any] = GENERATION, **overrides: Any) -> ModelDescription:
    files = ConfigFile(Path("config.json"), config), ConfigFile(Path("generation_config.json"), generation)
    return describe_model(*files, Overrides(**overrides))


def test_published_keys_and_those_that_transformers_writes_say_the_same(written: Path) -> None:
    """Heads of full layers are named by keys of their own in the one, layer by layer in the other."""
    published = describe(published_config())
    stored = describe(json.loads((written / "config.json").read_text()))
    assert stored.config == published.config
    assert stored.spec == published.spec
    sliding, full = published.config.attention_kinds
    assert (sliding.layers, sliding.num_kv_heads, sliding.head_dim, sliding.window) == ((0, 1), 2, 8, 6)
    assert (full.layers, full.num_kv_heads, full.head_dim, full.window) == ((2,), 1, 16, None)
    assert full.values_are_keys
    assert not sliding.values_are_keys


def test_the_sampler_is_the_published_one() -> None:
    """By generation_config.json, and where that says nothing by what transformers assumes."""
    spec = describe(published_config()).spec
    assert spec.refinement == Refinement(
        steps=6, first_temperature=0.8, last_temperature=0.4, entropy_bound=0.6, stable_steps=1, confident_below=0.3
    )
    assert spec.end_token_ids == (EOS, TURN_END)
    assert (spec.block_length, spec.decodings, spec.remaskings) == (CANVAS, ("diffusion",), ("entropy_bound",))
    assert spec.banned_token_ids == (), "padding fills a canvas after its end: without it no canvas would be certain"
    assert describe(published_config(), {}).spec.refinement == Refinement(
        steps=48, first_temperature=0.8, last_temperature=0.4, entropy_bound=0.1, stable_steps=1, confident_below=0.005
    )


def test_every_tensor_is_in_its_place(written: Path) -> None:
    """The decoder's under its published names, the encoder's factors, and nothing of the vision part."""
    model = load_model(written, device=CPU)
    stored = load_file(written / "model.safetensors")
    assert any("vision" in name for name in stored), "the checkpoint has no vision part to be left out"
    tensors = model.decoder.tensors()
    for index in range(3):
        for published, own in (
            (f"model.decoder.layers.{index}.layer_scalar", "layer_scalar"),
            (f"model.encoder.language_model.layers.{index}.layer_scalar", "text_scalar"),
            (f"model.decoder.layers.{index}.router.per_expert_scale", "mlp.gate.expert_scale"),
            (f"model.decoder.layers.{index}.mlp.up_proj.weight", "mlp.shared_experts.up_proj.weight"),
            (f"model.decoder.layers.{index}.self_attn.k_proj.weight", "self_attn.k_proj.weight"),
        ):
            assert torch.equal(tensors[f"layers.{index}.{own}"], stored[published]), published
        experts = stored[f"model.decoder.layers.{index}.experts.gate_up_proj"]
        assert torch.equal(tensors[f"layers.{index}.mlp.experts.5.up_proj.weight"], experts[5, 24:])
    assert "layers.2.self_attn.v_proj.weight" not in tensors
    read = [name for name in stored if not name.startswith(("model.encoder.vision", "model.encoder.embed_vision"))]
    assert model.decoder.num_parameters == sum(stored[name].numel() for name in read)


def test_a_missing_tensor_is_named_as_it_is_published(written: Path, tmp_path: Path) -> None:
    stored = load_file(written / "model.safetensors")
    for name in ("model.encoder.language_model.layers.1.layer_scalar", "model.decoder.layers.0.router.scale"):
        (tmp_path / "config.json").write_text((written / "config.json").read_text())
        save_file({own: tensor for own, tensor in stored.items() if own != name}, tmp_path / "model.safetensors")
        with pytest.raises(ModelLoadError, match=f"1 missing: {name.replace('.', '[.]')}"):
            load_model(tmp_path, device=CPU)


def test_random_weights_need_a_config_alone(tmp_path: Path) -> None:
    """`--load-format dummy`: any size can be measured without a checkpoint."""
    (tmp_path / "config.json").write_text(json.dumps(published_config()))
    model = load_model(tmp_path, device=CPU, load_format="dummy")
    assert model.config.vocab_size == VOCABULARY
    assert all(tensor.isfinite().all() for tensor in model.decoder.tensors().values())
    with pytest.raises(ModelLoadError, match="draft_quantization int8"):
        load_model(tmp_path, device=CPU, load_format="dummy", draft_quantization="int8")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ({"hidden_activation": "silu"}, "hidden_activation must be gelu_pytorch_tanh"),
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention"),
        ({"attention_k_eq_v": False}, "attention_k_eq_v"),
        ({"hidden_size_per_layer_input": 256}, "hidden_size_per_layer_input"),
        ({"num_experts": ...}, "num_experts is missing"),
        ({"top_k_experts": 9}, "at most num_experts"),
        ({"layer_types": ["full_attention", "full_attention", "sliding_attention"]}, "last layer"),
        ({"layer_types": ["full_attention"]}, "a list of 3"),
        ({"num_global_key_value_heads": 3}, "num_key_value_heads"),
        ({"per_layer_config": {"0": {"head_dim": 4}}}, "per_layer_config"),
        ({"final_logit_softcapping": None}, "final_logit_softcapping is missing"),
        ({"rope_parameters": {"sliding_attention": {"rope_theta": 1e4}}}, "full_attention"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
    ],
)
def test_what_would_change_every_logit_is_refused_by_its_key(text: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelLoadError, match=words):
        describe(published_config(**text))


@pytest.mark.parametrize(
    ("generation", "words"),
    [
        ({"sampler_config": {"_cls_name": "Other", "entropy_bound": 0.1}}, "no other sampler"),
        ({"sampler_config": {"entropy_bound": 0}}, "entropy_bound must be a positive number"),
        ({"t_min": 0.8, "t_max": 0.4}, "t_max must be greater"),
        ({"stability_threshold": -1}, "stability_threshold"),
        ({"eos_token_id": [VOCABULARY]}, "outside the vocabulary"),
    ],
)
def test_samplers_that_are_not_there_are_refused(generation: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelLoadError, match=words):
        describe(published_config(), generation)


def test_the_canvas_has_the_length_that_it_was_trained_with() -> None:
    assert describe(published_config(), block_length=CANVAS).spec.block_length == CANVAS
    with pytest.raises(ModelLoadError, match="--block-length"):
        describe(published_config(), block_length=16)
    with pytest.raises(ModelLoadError, match="text_config"):
        describe({**published_config(), "text_config": None})
