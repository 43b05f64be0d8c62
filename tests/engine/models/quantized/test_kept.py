"""Published weights that are multiplied as they are stored. If one fails, they take the memory that quantization was to
save, or are rounded a second time, and nobody is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.models.linear.int8 import choose_product
from engine.models.linear.storages import FLOAT_STORAGES
from engine.models.loader import LoadedModel, load_model
from tests.engine.models.quantized.formats import FORMATS, Format, compressed, gptq_config, write_plain, write_quantized
from tests.engine.models.quantized.writers import awq, gptq, in_bytes, packed
from tests.reference.checkpoints import tiny_config
from tests.reference.dense_attention import DenseAttention, dense_batch

CPU = torch.device("cpu")
SHAPE: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
"""Groups of 128 fit."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def ct_int4(group: int) -> Format:
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": group}
    return Format(lambda m: packed(m, bits=4, group=group), compressed("pack-quantized", weights))


def load(directory: Path, quantization: str = "auto", **options: Any) -> LoadedModel:
    return load_model(directory, device=CPU, dtype=torch.float32, quantization=quantization, **options)


@torch.inference_mode()
def logits(model: LoadedModel) -> torch.Tensor:
    batch = dense_batch([(0, 0, list(range(8, 40)), None)])
    attention = DenseAttention(2, 64)
    attention.prepare(batch)
    return model.decoder.logits(model.decoder.forward(batch, attention))


KEPT = {
    "ct-int8": (FORMATS["ct-int8"], "int8"),
    "ct-int8-packed": (FORMATS["ct-int8-packed"], "int8-weights"),
    "gptq-8-bit-rows": (
        Format(lambda m: gptq(m, bits=8, group=m.shape[1]), gptq_config(bits=8, group_size=-1)), "int8-weights",
    ),
    "ct-int4": (FORMATS["ct-int4"], "int4-weights-128"),
    "ct-int4-32": (ct_int4(32), "int4-weights"),
    "ct-int4-64": (ct_int4(64), "int4-weights-64"),
    "ct-int4-128": (ct_int4(128), "int4-weights-128"),
    "gptq-32": (Format(lambda m: gptq(m, group=32), gptq_config(group_size=32)), "int4-weights"),
    "gptq-64-asymmetric": (
        Format(lambda m: gptq(m, group=64, symmetric=False), gptq_config(group_size=64, sym=False)), "int4-weights-64",
    ),
    "awq-128": (
        Format(lambda m: awq(m, group=128), {**FORMATS["awq"].config, "group_size": 128}), "int4-weights-128",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_weights_are_kept_as_they_are_stored(name: str, tmp_path: Path) -> None:
    form, storage = KEPT[name]
    if storage == "int8" and choose_product() is None:
        pytest.skip("this machine has no exact product of 8-bit integers")
    plain = write_quantized(tmp_path / "kept", form, **SHAPE)
    kept = load(tmp_path / "kept")
    expanded = load(write_plain(tmp_path / "plain", plain, **SHAPE), "none")
    assert kept.decoder.storage.layers == storage
    assert kept.decoder.storage.head in FLOAT_STORAGES
    assert kept.published.endswith(f"are stored as {storage}")
    assert kept.decoder.num_bytes < 0.55 * expanded.decoder.num_bytes
    # Only the storage's own rounding is left: none of int8, bfloat16's of the others.
    allowed = 1e-6 if storage == "int8" else 2**-7
    for tensor, values in expanded.decoder.tensors().items():
        error = (kept.decoder.tensors()[tensor] - values).abs().max() / values.abs().max()
        assert error < allowed, tensor
    ours, theirs = logits(kept), logits(expanded)
    assert float((ours - theirs).norm() / theirs.norm()) < 0.05


@pytest.mark.parametrize(
    "name", ["ct-int8-asymmetric", "ct-int8-groups", "ct-int4-any-order", "ct-fp8-rows", "gptq-any-order", "gptq-2-bit"]
)
def test_what_no_storage_holds_is_expanded(name: str, tmp_path: Path) -> None:
    """It would be rounded a second time, to another grid."""
    plain = write_quantized(tmp_path, FORMATS[name], **SHAPE)
    found = load(tmp_path)
    assert found.decoder.storage.layers in FLOAT_STORAGES
    assert found.published.endswith("are expanded to float32")
    tensor = "layers.1.mlp.up_proj.weight"
    torch.testing.assert_close(found.decoder.tensors()[tensor], plain[f"encoder.{tensor}"], rtol=1e-6, atol=1e-7)


def test_layers_left_plain_are_not_quantized_with_the_others(tmp_path: Path) -> None:
    """One storage serves all layers: those that the publisher found too sensitive would be rounded after all."""
    form = FORMATS["ct-int8"]
    config = {**form.config, "ignore": ["diffusion_head", "re:.*o_proj"]}
    matrices = iter(range(14))
    # The writer's fourth matrix of a layer is o_proj; it stays plain.
    write_quantized(
        tmp_path, Format(lambda m: ({"weight": m}, m) if next(matrices) % 7 == 3 else in_bytes(m), config), **SHAPE
    )
    found = load(tmp_path)
    assert found.decoder.storage.layers in FLOAT_STORAGES
    assert found.published.startswith("12 matrices of int8 a scale a row")


def test_the_operator_may_ask_for_another_storage(tmp_path: Path) -> None:
    """A checkpoint would dictate precision and speed."""
    write_quantized(tmp_path, FORMATS["ct-int8-packed"], **SHAPE)
    assert load(tmp_path, "none").decoder.storage.layers in FLOAT_STORAGES
    for name in ("int8-weights", "int4-weights"):
        assert load(tmp_path, name).decoder.storage.layers == name


def test_random_weights_are_stored_as_the_checkpoints_would_be(tmp_path: Path) -> None:
    """Measuring a quantized shape without its weights would measure another one."""
    config = tiny_config(quantization_config=ct_int4(32).config, **SHAPE)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load(tmp_path, load_format="dummy").decoder.storage.layers == "int4-weights"
