"""Looking at a model without loading it: what is told must be what loading it would have found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.config import EngineConfig
from engine.errors import ModelLoadError
from engine.measure.inspection import inspect
from engine.models.loader import load_model
from tests.reference.checkpoints import write_checkpoint

CPU = torch.device("cpu")


def damage_shape(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    name = next(name for name in tensors if name.endswith("down_proj.weight"))
    save_file({**tensors, name: tensors[name][:-1].contiguous()}, directory / "model.safetensors")


def lose_a_tensor(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    del tensors[next(name for name in tensors if name.endswith("q_proj.weight"))]
    save_file(tensors, directory / "model.safetensors")


def cut_the_file(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def name_another_architecture(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "architectures": ["GPT2LMHeadModel"]}))


@pytest.mark.parametrize("damage", [damage_shape, lose_a_tensor, cut_the_file, name_another_architecture])
def test_what_is_wrong_is_told_as_loading_would_tell_it(tmp_path: Path, damage: object) -> None:
    """An operator would hear that all is well, and find out after minutes of loading."""
    directory = write_checkpoint(tmp_path / "model")
    damage(directory)  # type: ignore[operator]
    with pytest.raises(ModelLoadError) as loading:
        load_model(directory, device=CPU)
    found = inspect(EngineConfig(model=str(directory), device="cpu"))
    assert (found.model, found.problem) == (None, str(loading.value))


@pytest.mark.parametrize("overrides", [{}, {"tie_word_embeddings": True}, {"lora_rank": 4}, {"shards": 3}])
def test_a_sound_model_is_described(tmp_path: Path, overrides: dict[str, object]) -> None:
    directory = write_checkpoint(tmp_path / "model", **overrides)  # type: ignore[arg-type]
    found = inspect(EngineConfig(model=str(directory), device="cpu"))
    loaded = load_model(directory, device=CPU)
    assert found.problem == ""
    assert found.model is not None
    info = found.model.info
    assert (info.num_parameters, info.dtype) == (loaded.decoder.num_parameters, "float32")
    assert (info.decodings, info.vocab_size) == (loaded.spec.decodings, loaded.config.vocab_size)
    stored = [*loaded.decoder.targets().values(), *loaded.decoder.adapter_targets().values()]
    assert found.model.weight_bytes == sum(target.values().nbytes for target in stored)


def test_a_device_that_is_not_there_is_a_problem_and_not_a_crash() -> None:
    found = inspect(EngineConfig(device="cuda:63"))
    assert "cuda:63" in found.problem
    assert found.device == ""


def test_kernels_say_what_they_lack() -> None:
    found = inspect(EngineConfig(device="cpu"))
    assert found.kernels["torch"] == ""
    assert found.kernels["triton"]
