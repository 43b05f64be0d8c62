"""How far weights are, as it is told while they are loaded. Wrong numbers make people wait, or kill what works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from engine.models import load_progress
from engine.models.load_progress import stored_sizes
from engine.models.loader import load_model
from tests.engine.models.quantized.formats import FORMATS, write_quantized
from tests.reference.checkpoints import write_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def every_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_progress, "REPORT_SECONDS", 0)


def reports(directory: Path, **options: Any) -> list[tuple[int, ...]]:
    told: list[tuple[int, ...]] = []
    load_model(directory, device=CPU, report=lambda *progress: told.append(progress), **options)
    return told


def bytes_in(directory: Path) -> int:
    """Of all tensors, by reading them."""
    total = 0
    for path in directory.glob("model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            total += sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
    return total


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("options", [{}, {"lora_rank": 4}, {"tie_word_embeddings": True}])
def test_the_whole_checkpoint_is_counted(tmp_path: Path, shards: int, options: dict[str, Any]) -> None:
    directory = write_checkpoint(tmp_path / "model", shards=shards, **options)
    told = reports(directory)
    assert told[-1] == (bytes_in(directory), bytes_in(directory), shards, shards)
    assert len(told) > 20
    assert told == sorted(told), "it goes back"
    assert {(total, files) for _, total, _, files in told} == {(bytes_in(directory), shards)}
    assert told[0][2] == 0, "a file is done before its last tensor is"


@pytest.mark.parametrize("name", ["gptq", "ct-fp8-static", "modelopt-beside"])
def test_a_quantized_matrix_counts_with_all_that_belongs_to_it(tmp_path: Path, name: str) -> None:
    write_quantized(tmp_path, FORMATS[name], shards=2)
    told = reports(tmp_path)
    whole = bytes_in(tmp_path)
    assert told[-1] == (whole, whole, 2, 2)
    assert told[-2] == told[-1], "the end is no leap"
    assert told == sorted(told)


def test_sizes_are_those_of_the_file(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(3, 5), "b": torch.zeros(7, dtype=torch.bfloat16), "empty": torch.zeros(0)}
    save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    assert stored_sizes(tmp_path / "x.safetensors") == {"a": 60, "b": 14, "empty": 0}


def test_reports_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tens of thousands of expert tensors would be as many messages to the API process."""
    monkeypatch.setattr(load_progress, "REPORT_SECONDS", 3600)
    assert len(reports(write_checkpoint(tmp_path / "model"))) == 2, "the first and the last"
