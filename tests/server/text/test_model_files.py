"""Finding the files around a tokenizer. If one fails, a damaged copy of a model is served as another model."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ModelLoadError
from server.text import model_files
from server.text.model_files import default_name, resolve_model
from server.text.served_model import ServedModel
from server.text.tokenizer import TokenizerFiles
from tests.fakes import BUILTIN, INFO

BLOB = "../../blobs/abc"
FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    shutil.copytree(BUILTIN, tmp_path / "model", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return tmp_path / "model"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("dummy", [False, True])
def test_a_broken_link_is_not_an_absent_file(directory: Path, name: str, dummy: bool) -> None:
    """Chats would be refused, BOS left out, or text made of random tokens, for a file that `ls` shows."""
    link = directory / name
    link.unlink(missing_ok=True)
    link.symlink_to(BLOB)
    with pytest.raises(ModelLoadError) as caught:
        ServedModel.load("name", INFO, directory, dummy=dummy)
    text = str(caught.value)
    assert text.startswith(f"{link} is a broken link: it points to {BLOB}, and {os.path.realpath(link)} cannot")


def test_the_same_files_behind_links_are_read(directory: Path, tmp_path: Path) -> None:
    """Every model that a hub's client has fetched is a folder of links: none could be served."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in directory.iterdir():
        (linked / file.name).symlink_to(f"../model/{file.name}")
    assert TokenizerFiles.read(linked) == TokenizerFiles.read(directory)


@pytest.mark.parametrize("link", ["org", "org/name"])
def test_a_model_behind_a_broken_link_is_never_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: str
) -> None:
    """A stranger's model whose name is spelled like the path would be served in its place."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_files, "_fetch", pytest.fail)
    place = tmp_path / link
    place.parent.mkdir(exist_ok=True)
    place.symlink_to("gone")
    with pytest.raises(ModelLoadError, match=f"^{link} is a broken link: it points to gone, and "):
        resolve_model("org/name")
    assert default_name("org/name") == "org/name"


def test_links_in_a_circle_are_an_error_and_not_a_crash(tmp_path: Path) -> None:
    """The server would leave with a traceback before it can say what is wrong."""
    link = tmp_path / "latest"
    link.symlink_to("latest")
    assert default_name(str(link)) == "latest"
    with pytest.raises(ModelLoadError, match="latest is a broken link: it points to latest"):
        resolve_model(str(link))


@pytest.mark.parametrize("key", ["bos_token", "eos_token", "pad_token", "mask_token"])
@pytest.mark.parametrize("value", [2, ["<|eos|>"], {"id": 2}, {"content": 2}, True])
def test_a_token_that_is_not_named_by_its_text_is_blamed_on_its_file(directory: Path, key: str, value: Any) -> None:
    """A template would write nothing in its place, and the model would answer worse without anybody knowing why."""
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({key: value}))
    with pytest.raises(ModelLoadError) as caught:
        ServedModel.load("name", INFO, directory)
    assert str(caught.value) == f"{path}: {key} must be the token's text, not {value!r}"


@pytest.mark.parametrize("value", ["<|eos|>", {"content": "<|eos|>", "special": True}, None])
def test_a_token_is_named_by_its_text_in_any_of_its_forms(directory: Path, value: Any) -> None:
    """Published models use all of them, and would be refused."""
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": value, "add_bos_token": True}))
    texts = ServedModel.load("name", INFO, directory).tokenizer.special_texts
    assert texts["eos_token"] == "<|eos|>"
