"""Every published format against the plain checkpoint that it stands for. If one fails, a quantized model is served as
noise, or as a model that is nearly right: nobody would see why its answers are worse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.models.families import registry
from engine.models.families.description import ModelDescription
from engine.models.families.names import WeightNames
from engine.models.families.nemotron import describe_nemotron_labs_diffusion
from engine.models.families.overrides import Overrides
from engine.models.families.registry import Family
from engine.models.files import ConfigFile
from engine.models.loader import LoadedModel, load_model
from tests.engine.models.quantized.formats import FORMATS, Format, write_plain, write_quantized
from tests.reference.checkpoints import Tensors, random_tensors, tiny_config, write_weights
from tests.reference.dense_attention import DenseAttention, dense_batch

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def load(directory: Path, dtype: torch.dtype | None = None) -> LoadedModel:
    return load_model(directory, device=CPU, dtype=dtype, quantization="none")


@torch.inference_mode()
def logits(model: LoadedModel) -> torch.Tensor:
    batch = dense_batch([(0, 0, list(range(8, 40)), None)])
    attention = DenseAttention(2, 64)
    attention.prepare(batch)
    return model.decoder.logits(model.decoder.forward(batch, attention))


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_loads_as_the_matrices_it_stands_for(name: str, tmp_path: Path) -> None:
    plain = write_quantized(tmp_path / "quantized", FORMATS[name])
    found = load(tmp_path / "quantized")
    expected = load(write_plain(tmp_path / "plain", plain))
    for tensor, values in expected.decoder.tensors().items():
        assert torch.equal(found.decoder.tensors()[tensor], values), tensor
    assert torch.equal(logits(found), logits(expected))
    assert found.published.startswith("14 matrices of ")
    assert found.published.endswith(" are expanded to float32")
    assert expected.published == ""


def test_the_formats_differ_from_the_weights_they_were_made_of() -> None:
    """The test above would pass with readers that ignore scales and zero points if rounding lost nothing."""
    matrix = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
    for name, form in FORMATS.items():
        _, meant = form.write(matrix)
        error = float((meant - matrix).norm() / matrix.norm())
        assert 1e-3 < error < (0.6 if "2-bit" in name else 0.2), name


@pytest.mark.parametrize("name", ["ct-int4-any-order", "gptq", "fp8-static"])
def test_a_module_may_lie_in_several_files(name: str, tmp_path: Path) -> None:
    """Large checkpoints are cut between a matrix and its scales: they would not load."""
    plain = write_quantized(tmp_path, FORMATS[name], shards=3)
    found = load(tmp_path).decoder.tensors()
    assert torch.equal(found["layers.1.mlp.down_proj.weight"], plain["encoder.layers.1.mlp.down_proj.weight"])


def test_expanded_weights_have_the_decoders_own_type(tmp_path: Path) -> None:
    """The expansion would double the memory that the operator chose."""
    plain = write_quantized(tmp_path, FORMATS["awq"])
    found = load(tmp_path, torch.bfloat16)
    name = "layers.0.self_attn.k_proj.weight"
    assert torch.equal(found.decoder.tensors()[name], plain[f"encoder.{name}"].bfloat16())
    assert found.published == "14 matrices of int4 in groups of 16 (awq) are expanded to bfloat16"


def test_modules_may_be_left_plain_or_quantized_otherwise(tmp_path: Path) -> None:
    """Sensitive layers keep more bits: a checkpoint made with care would be refused, or its layers confused."""
    four, eight = FORMATS["ct-int4-groups"], FORMATS["ct-int8-packed"]
    config = json.loads(json.dumps(four.config))
    config["ignore"] += ["re:.*layers.0.mlp.*", "encoder.layers.1.self_attn.k_proj"]
    other = json.loads(json.dumps(eight.config))["config_groups"]["group_0"]
    config["config_groups"]["group_1"] = {**other, "targets": ["re:.*\\.o_proj$"]}
    plain = random_tensors(tiny_config())
    stored: Tensors = {}
    for name, tensor in plain.items():
        module = name.removesuffix(".weight")
        skipped = ".layers." not in name or tensor.dim() != 2 or "0.mlp" in name or "1.self_attn.k" in name
        if skipped:
            stored[name] = tensor
        else:
            parts, plain[name] = (eight if module.endswith("o_proj") else four).write(tensor)
            stored |= {f"{module}.{suffix}": part for suffix, part in parts.items()}
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(quantization_config=config)))
    write_weights(tmp_path, stored)
    found = load(tmp_path)
    for name, values in found.decoder.tensors().items():
        own = {"lm_head.weight": "diffusion_head.weight"}.get(name, f"encoder.{name}")
        assert torch.equal(values, plain[own]), name
    assert "8 matrices of int4 in groups of 16" in found.published
    assert "2 matrices of int8 a scale a row" in found.published


@pytest.mark.parametrize("name", ["ct-int4-asymmetric", "gptq", "awq", "ct-fp8-blocks", "fp8-static"])
def test_a_family_with_fused_matrices_loads(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """q, k and v stored as one quantized matrix must be cut with their scales: attention would be noise."""
    fused = tuple(f"self_attn.{part}_proj.weight" for part in "qkv")
    names = WeightNames(
        body_prefixes=("encoder.",), heads=("diffusion_head.weight",), layer={"attention.qkv.weight": fused}
    )

    def describe(config: ConfigFile, generation: ConfigFile, overrides: Overrides) -> ModelDescription:
        known = describe_nemotron_labs_diffusion(config, generation)
        return ModelDescription(config=known.config, spec=known.spec, names=names)

    monkeypatch.setattr(registry, "FAMILIES", {"made_up": Family(describe=describe, architectures=("MadeUpModel",))})
    form: Format = FORMATS[name]
    config = tiny_config(architectures=["MadeUpModel"], quantization_config=form.config)
    plain = random_tensors(config)
    for layer in range(2):
        parts = [plain.pop(f"encoder.layers.{layer}.{part}") for part in fused]
        stored, meant = form.write(torch.cat(parts))
        plain |= {f"encoder.layers.{layer}.attention.qkv.{suffix}": part for suffix, part in stored.items()}
        for part, rows in zip(fused, meant.split([64, 32, 32]), strict=True):
            plain[f"expected.{layer}.{part}"] = rows.clone()
    expected = {key: plain.pop(key) for key in list(plain) if key.startswith("expected.")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_weights(tmp_path, plain)
    found = load(tmp_path).decoder.tensors()
    for key, rows in expected.items():
        assert torch.equal(found[key.replace("expected", "layers")], rows), key


def test_a_quantized_head_and_embedding_load(tmp_path: Path) -> None:
    """Small models are mostly embedding: formats that quantize it too would be refused."""
    form = FORMATS["ct-int8-packed"]
    config = {**form.config, "ignore": []}
    plain = write_quantized(tmp_path, Format(form.write, config))
    stored = load_file(tmp_path / "model.safetensors")
    for name in ("diffusion_head.weight", "encoder.embed_tokens.weight"):
        parts, plain[name] = form.write(stored.pop(name))
        stored |= {f"{name.removesuffix('weight')}{suffix}": part for suffix, part in parts.items()}
    write_weights(tmp_path, stored)
    decoder = load(tmp_path).decoder
    assert torch.equal(decoder.embedding, plain["encoder.embed_tokens.weight"])
    assert torch.equal(decoder.tensors()["lm_head.weight"], plain["diffusion_head.weight"])


def test_random_weights_need_no_quantized_ones(tmp_path: Path) -> None:
    """Measuring the shape of a quantized checkpoint by its config.json alone would fail."""
    config = tiny_config(quantization_config=FORMATS["awq"].config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_model(tmp_path, device=CPU, load_format="dummy").published == ""
