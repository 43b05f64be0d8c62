"""Finding a model's files. If one fails, a damaged copy of a model is served as if files had been left out of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from engine.errors import ModelLoadError
from engine.models.files import is_present, model_directory
from engine.models.loader import load_model
from tests.reference.checkpoints import write_checkpoint

CPU = torch.device("cpu")
BLOB = "../../blobs/abc"
INDEX, SHARD = "model.safetensors.index.json", "model-00002-of-00002.safetensors"
ADAPTER = "linear_spec_lora"


def break_link(path: Path) -> None:
    """Puts a link in the place of a file or folder, as a hub's cache has it, and nothing behind it."""
    if path.exists():
        path.rename(path.with_name("moved-away"))
    path.symlink_to(BLOB)


def assert_names_the_link(error: pytest.ExceptionInfo[ModelLoadError], link: Path, target: str = BLOB) -> None:
    text = str(error.value)
    assert text.startswith(f"{link} is a broken link: it points to {target}, and {os.path.realpath(link)} cannot")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("name", "shards"),
    [
        ("config.json", 1), ("generation_config.json", 1), ("model.safetensors", 1), (INDEX, 2), (SHARD, 2), (INDEX, 1),
        (ADAPTER, 1), (f"{ADAPTER}/adapter_config.json", 1), (f"{ADAPTER}/adapter_model.safetensors", 1),
    ],
)  # fmt: skip
def test_a_broken_link_is_not_an_absent_file(tmp_path: Path, name: str, shards: int) -> None:
    """Without its generation_config.json a model would not stop; an operator would look for a file that `ls` shows."""
    directory = write_checkpoint(tmp_path / "snapshots" / "one", shards=shards, lora_rank=4)
    break_link(directory / name)
    with pytest.raises(ModelLoadError) as caught:
        load_model(directory, device=CPU)
    assert_names_the_link(caught, directory / name)


def test_a_model_of_links_that_lead_somewhere_loads(tmp_path: Path) -> None:
    """Every model that a hub's client has fetched is a folder of links: none of them would load."""
    blobs = write_checkpoint(tmp_path / "blobs", lora_rank=4)
    linked = tmp_path / "snapshots" / "one"
    linked.mkdir(parents=True)
    for blob in blobs.iterdir():
        (linked / blob.name).symlink_to(f"../../blobs/{blob.name}")
    (tmp_path / "latest").symlink_to(linked)
    assert load_model(tmp_path / "latest", device=CPU).decoder.adapter is not None


@pytest.mark.parametrize("beneath", ["", "model"])
def test_a_model_directory_behind_a_broken_link_is_named(tmp_path: Path, beneath: str) -> None:
    """A disk that is not mounted would look like a mistyped path."""
    link = tmp_path / "latest"
    break_link(link)
    with pytest.raises(ModelLoadError) as caught:
        model_directory(str(link / beneath))
    assert_names_the_link(caught, link)
    with pytest.raises(ModelLoadError) as caught:
        load_model(link / beneath, device=CPU)
    assert_names_the_link(caught, link)


def test_links_in_a_circle_are_named(tmp_path: Path) -> None:
    """They would be a traceback, or read as absent."""
    link = tmp_path / "config.json"
    link.symlink_to("config.json")
    with pytest.raises(ModelLoadError) as caught:
        is_present(link)
    assert_names_the_link(caught, link, "config.json")
    assert "symbolic links" in str(caught.value)


def test_what_is_not_there_is_absent(tmp_path: Path) -> None:
    """Optional files may be left out: a good model would be refused."""
    (tmp_path / "file").touch()
    assert is_present(tmp_path)
    assert is_present(tmp_path / "file")
    for name in ("absent", "absent/too", "file/beneath", "zero\0byte"):
        assert not is_present(tmp_path / name)


def test_what_cannot_be_reached_is_not_absent(tmp_path: Path) -> None:
    """A file that the server may not see, or cannot, would count as left out."""
    with pytest.raises(ModelLoadError, match="cannot be read: File name too long"):
        is_present(tmp_path / ("x" * 300))
