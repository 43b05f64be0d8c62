"""Models quantized while they are loaded. If one fails, memory runs out that a user chose quantization for, or a
quantized model answers noise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.errors import ModelLoadError
from engine.models.decoder import Decoder
from engine.models.files import model_directory
from engine.models.linear import choice
from engine.models.linear.dense import DenseLinear
from engine.models.linear.gathered import GatheredLinear
from engine.models.linear.int8 import Int8Linear
from engine.models.linear.packed import PackedLinear
from engine.models.linear.storages import Storage
from engine.models.loader import load_model
from tests.reference.checkpoints import write_checkpoint
from tests.reference.dense_attention import DenseAttention, dense_batch

CPU = torch.device("cpu")
SHAPE = {"hidden_size": 64, "intermediate_size": 128}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def logits_of(decoder: Decoder) -> torch.Tensor:
    batch = dense_batch([(0, 0, list(range(8, 30)), None)])
    attention = DenseAttention(decoder.config.num_layers, 64)
    attention.prepare(batch)
    return decoder.logits(decoder.forward(batch, attention)).float()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("quantization", "error"), [("int8", 0.05), ("int8-weights", 0.05), ("int4-weights", 0.25)])
def test_a_quantized_model_is_the_float_one_within_its_error(
    tmp_path: Path, quantization: str, error: float, tied: bool
) -> None:
    directory = write_checkpoint(tmp_path, tie_word_embeddings=tied, shards=3, **SHAPE)
    exact = logits_of(load_model(directory, device=CPU, dtype=torch.float32).decoder)
    quantized = load_model(directory, device=CPU, dtype=torch.float32, quantization=quantization).decoder
    found = logits_of(quantized)
    assert (found - exact).norm() / exact.norm() < error
    # What is shown of its weights, multiplied as floats, gives the same logits: nothing was put in a wrong place.
    shown = load_model(directory, device=CPU, dtype=torch.float32).decoder
    for name, target in shown.targets().items():
        target.load(quantized.tensors()[name])
    activations = 0.05 if quantization == "int8" else 0.02
    if not tied:  # where it is tied, the head alone is quantized, and the embedding is shown
        assert (logits_of(shown) - found).norm() / found.norm() < activations


def test_a_tied_head_is_quantized_in_a_copy_that_is_counted(tmp_path: Path) -> None:
    """Its product is the largest of a small model; the embedding is looked up and stays as it is."""
    directory = write_checkpoint(tmp_path, tie_word_embeddings=True, **SHAPE)
    plain, quantized = (
        load_model(directory, device=CPU, dtype=torch.float32, quantization=name).decoder for name in ("none", "int8")
    )
    assert plain.shares_head
    assert isinstance(plain.head, DenseLinear)
    assert isinstance(quantized.head, Int8Linear)
    assert torch.equal(quantized.embedding, plain.embedding)
    matrices = sum(matrix.num_bytes for layer in quantized.layers for matrix in layer.linears)
    vectors = 4 * (64 + 2 * 2 * 64)
    assert quantized.num_bytes == quantized.embedding.nbytes + 96 * (64 + 4) + matrices + vectors
    assert plain.num_bytes == 4 * plain.num_parameters


@pytest.mark.parametrize("shards", [1, 4])
def test_loading_holds_no_more_than_one_matrix_beside_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int
) -> None:
    """A model would need the memory of the float one to be loaded, and that is why it was quantized."""
    directory = write_checkpoint(tmp_path, num_hidden_layers=6, shards=shards, **SHAPE)
    waiting: dict[int, int] = {}
    most = 0
    put = GatheredLinear.put

    def counted(self: GatheredLinear, part: str, tensors: tuple[torch.Tensor, ...]) -> None:
        nonlocal most
        put(self, part, tensors)
        waiting[id(self)] = sum(tensor.nbytes for pieces in self._waiting.values() for tensor in pieces)
        most = max(most, sum(waiting.values()))

    monkeypatch.setattr(GatheredLinear, "put", counted)
    decoder = load_model(directory, device=CPU, dtype=torch.float32, quantization="int8").decoder
    assert len(waiting) == 6 * 4 + 1
    assert 0 < most <= max(matrix.num_bytes for layer in decoder.layers for matrix in layer.linears)
    assert sum(waiting.values()) == 0


def test_every_matrix_is_stored_as_asked(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, **SHAPE)
    decoder = load_model(directory, device=CPU, quantization="int4-weights").decoder
    assert decoder.storage == Storage("int4-weights", "int8-weights")
    kinds = {type(matrix).__name__ for layer in decoder.layers for matrix in layer.linears}
    assert kinds == {"Int4WeightLinear"}
    assert type(decoder.head).__name__ == "Int8WeightLinear"


def test_what_cannot_be_quantized_is_refused_in_one_line(tmp_path: Path) -> None:
    for hidden, quantization, words in (
        (48, "int4-weights", "does not fit this model: groups of 32 do not divide 48 inputs"),
        (40, "int8-weights", "multiple of 16, not 40"),
        (32, "fp8", "fp8 runs on NVIDIA GPUs, not on cpu"),
    ):
        directory = write_checkpoint(tmp_path / str(hidden), hidden_size=hidden)
        with pytest.raises(ModelLoadError, match=words) as caught:
            load_model(directory, device=CPU, quantization=quantization)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("advantage", "stored"), [(1.5, "packed"), (1.02, "dense")])
def test_matrices_are_packed_where_that_was_measured_to_be_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, advantage: float, stored: str
) -> None:
    """The built-in model would lose a third of its speed, or a real one half of it."""
    monkeypatch.setattr(choice, "advantage_of_packed", lambda *_: advantage)
    monkeypatch.setattr(choice.packed, "is_exact", lambda dtype: True)
    monkeypatch.setattr(choice, "SMALL_LAYER", 0)
    directory = write_checkpoint(tmp_path)
    decoder = load_model(directory, device=CPU, dtype=torch.float32).decoder
    assert decoder.storage == Storage(stored, stored)
    assert isinstance(decoder.head, PackedLinear if stored == "packed" else DenseLinear)
    # float64, and processors whose packed products are not right, are never packed.
    monkeypatch.setattr(choice.packed, "is_exact", lambda dtype: False)
    assert load_model(directory, device=CPU, dtype=torch.float64).decoder.storage == Storage()


def test_the_built_in_models_products_are_not_left_to_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start at a noisy moment would give other bits, and another speed, than the one before."""
    monkeypatch.setattr(choice, "advantage_of_packed", lambda *_: 9.0)
    assert load_model(model_directory("builtin"), device=CPU).decoder.storage == Storage()


def test_packed_and_dense_models_compute_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write_checkpoint(tmp_path, tie_word_embeddings=True)
    found = {}
    monkeypatch.setattr(choice, "SMALL_LAYER", 0)
    for advantage in (0.5, 2.0):
        monkeypatch.setattr(choice, "advantage_of_packed", lambda *_, chosen=advantage: chosen)
        decoder = load_model(directory, device=CPU, dtype=torch.float32).decoder
        found[decoder.storage.layers] = logits_of(decoder)
    torch.testing.assert_close(found["packed"], found["dense"], rtol=1e-4, atol=1e-4)


def test_the_measurement_is_a_ratio_of_times() -> None:
    ratio = choice.advantage_of_packed(((96, 64), (64, 64)), torch.float32, 1)
    assert 0 < ratio < 100
    assert choice.advantage_of_packed(((96, 64), (64, 64)), torch.float32, 1) == ratio
