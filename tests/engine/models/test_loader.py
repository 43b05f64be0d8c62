"""Models whose output head is the embedding. If one fails, what fine-tuning wrote is refused, or loads another head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.errors import ModelLoadError
from engine.models import loader, weights
from engine.models.families import registry
from engine.models.families.description import ConfigKeys, ModelDescription
from engine.models.families.names import WeightNames
from engine.models.families.nemotron import describe_nemotron_labs_diffusion
from engine.models.families.overrides import Overrides
from engine.models.files import ConfigFile
from engine.models.loader import load_model
from tests.reference.checkpoints import Tensors, write_checkpoint, write_weights

CPU = torch.device("cpu")
EMBEDDING, HEAD = "encoder.embed_tokens.weight", "diffusion_head.weight"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "tied", tie_word_embeddings=True)


def stored(directory: Path) -> Tensors:
    return {name: tensor.clone() for name, tensor in load_file(directory / "model.safetensors").items()}


def head_of(directory: Path, dtype: torch.dtype | None = None) -> torch.Tensor:
    decoder = load_model(directory, device=CPU, dtype=dtype).decoder
    assert decoder.head.targets()["lm_head.weight"].values().data_ptr() == decoder.embedding.data_ptr()
    return decoder.embedding


def failure(directory: Path) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_model(directory, device=CPU)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("name", [HEAD, "lm_head.weight", "model.lm_head.weight"])
def test_a_stored_head_that_is_the_embedding_loads(directory: Path, name: str, shards: int) -> None:
    """Fine-tuning tools store the shared tensor twice: their models would be refused."""
    tensors = stored(directory)
    (directory / "model.safetensors").unlink()
    write_weights(directory, {**tensors, name: tensors[EMBEDDING].clone()}, shards)
    assert torch.equal(head_of(directory), tensors[EMBEDDING])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_heads_are_compared_as_they_load(directory: Path, dtype: torch.dtype) -> None:
    """A head that was stored in another type than the embedding, with the same values, would be called different."""
    tensors = stored(directory)
    embedding = tensors[EMBEDDING].half()
    write_weights(directory, {**tensors, EMBEDDING: embedding, HEAD: embedding.float()})
    assert torch.equal(head_of(directory, dtype), embedding.to(dtype))


def test_heads_are_compared_bit_by_bit(directory: Path) -> None:
    """A NaN equals nothing, itself neither: an operator would be told of a difference that is not there."""
    tensors = stored(directory)
    embedding = tensors[EMBEDDING].clone()
    embedding[3, 4] = float("nan")
    write_weights(directory, {**tensors, EMBEDDING: embedding, HEAD: embedding.clone()})
    assert torch.equal(head_of(directory).isnan(), embedding.isnan())


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("row", [0, 41, 95])
def test_a_head_that_differs_is_refused(
    directory: Path, monkeypatch: pytest.MonkeyPatch, row: int, shards: int
) -> None:
    """One of the two would be dropped silently: the fine-tuned head, or the tie that config.json asks for."""
    monkeypatch.setattr(weights, "PIECE", 40)  # three pieces, the last one shorter
    tensors = stored(directory)
    (directory / "model.safetensors").unlink()
    head = tensors[EMBEDDING].clone()
    head[row, 31] += 1e-3
    write_weights(directory, {**tensors, HEAD: head}, shards)
    message = failure(directory)
    file = next(path for path in directory.glob("*.safetensors") if HEAD in load_file(path))
    assert message.startswith(f"{file}: {HEAD} differs from the embedding")
    assert "set tie_word_embeddings to false there" in message
    assert "or remove the tensor" in message
    write_weights(directory, {**tensors, HEAD: head[:90].clone()}, shards)
    assert f"{HEAD} has shape (90, 32); config.json makes it (96, 32)" in failure(directory)


def test_a_head_alone_is_the_embedding(directory: Path) -> None:
    """Writers that store a shared tensor once may keep the head's name: their models would lack an embedding."""
    tensors = stored(directory)
    embedding = tensors.pop(EMBEDDING)
    write_weights(directory, {**tensors, HEAD: embedding})
    assert torch.equal(head_of(directory), embedding)
    write_weights(directory, {**tensors, HEAD: embedding, "lm_head.weight": embedding + 1})
    assert "lm_head.weight differs from the embedding" in failure(directory)
    write_weights(directory, tensors)
    assert f"1 missing: {EMBEDDING}." in failure(directory)


def test_a_model_with_its_own_head_must_bring_it(tmp_path: Path) -> None:
    """The embedding would stand in for a lost head, and answer noise."""
    directory = write_checkpoint(tmp_path)
    tensors = stored(directory)
    del tensors[HEAD]
    write_weights(directory, tensors)
    assert failure(directory) == f"{directory} does not fit the model: tensors 1 missing: {HEAD}."


def test_a_family_with_other_names_is_told_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator would be told to set a key that this family's config.json does not have."""
    names = WeightNames(body_prefixes=("encoder.",), heads=("out.weight",), body={"wte.weight": "embed_tokens.weight"})

    def describe(config: ConfigFile, generation: ConfigFile, overrides: Overrides) -> ModelDescription:
        known = describe_nemotron_labs_diffusion(config, generation, overrides)
        keys = ConfigKeys(tied_head="weight_tying")
        return ModelDescription(config=known.config, spec=known.spec, names=names, keys=keys)

    made_up = registry.Family(describe=describe, architectures=("MadeUpModel",))
    monkeypatch.setattr(registry, "FAMILIES", {"made_up": made_up})
    directory = write_checkpoint(tmp_path, architectures=["MadeUpModel"], tie_word_embeddings=True)
    tensors = stored(directory)
    embedding = tensors.pop(EMBEDDING)
    tensors["encoder.wte.weight"] = embedding
    write_weights(directory, {**tensors, "out.weight": embedding.clone()})
    assert torch.equal(head_of(directory), embedding)
    write_weights(directory, {**tensors, "out.weight": -embedding})
    assert "out.weight differs from the embedding" in failure(directory)
    assert "set weight_tying to false" in failure(directory)


@pytest.mark.parametrize("tied", [True, False])
def test_nothing_is_compared_where_no_head_is_spare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tied: bool
) -> None:
    """Every start would read the largest tensors twice."""
    compare: Callable[..., bool] = pytest.fail
    monkeypatch.setattr(loader, "holds_the_same", compare)
    load_model(write_checkpoint(tmp_path, tie_word_embeddings=tied), device=CPU)
