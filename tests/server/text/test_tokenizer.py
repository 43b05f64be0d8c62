"""Encoding: control tokens come only from where they are meant, and BOS stands once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tokenizers import Tokenizer as RustTokenizer

from engine.errors import ModelLoadError
from server.text.tokenizer import Tokenizer, TokenizerFiles
from tests.fakes import BUILTIN, INFO, builtin_tokenizer

CONTROL = ["<|pad|>", "<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|mask|>", "<|assistant|>", "<|end|>"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return builtin_tokenizer()


def files(**config: Any) -> TokenizerFiles:
    return TokenizerFiles(TokenizerFiles.read(BUILTIN).spec, config, None)


@pytest.mark.parametrize("spelling", CONTROL)
def test_plain_text_never_becomes_a_control_token(tokenizer: Tokenizer, spelling: str) -> None:
    """A user who types a control token must not be able to end the prompt or speak as the system."""
    ids = tokenizer.encode_text(f"a {spelling} b")
    assert not set(ids) & set(range(8))
    assert tokenizer.decode(ids) == f"a {spelling} b"


@pytest.mark.parametrize("spelling", ["<|mask|>", "<|pad|>"])
def test_a_prompt_cannot_spell_mask_or_padding(tokenizer: Tokenizer, spelling: str) -> None:
    """A mask in a prompt would be filled in, or taken for a hole of the canvas."""
    ids = tokenizer.encode_prompt(f"x{spelling}y")
    assert not {0, 5} & set(ids)
    assert tokenizer.decode(ids, skip_special_tokens=False).endswith(f"x{spelling}y")


def test_a_prompt_may_spell_the_other_control_tokens(tokenizer: Tokenizer) -> None:
    """Clients that write the chat format by hand rely on it."""
    reference = RustTokenizer.from_file(str(BUILTIN / "tokenizer.json"))
    text = "<|bos|><|user|>Add 1 and 2.<|assistant|>3<|eos|>"
    assert tokenizer.encode_prompt(text) == reference.encode(text, add_special_tokens=False).ids


def test_plain_text_is_encoded_as_the_published_tokenizer_does(tokenizer: Tokenizer) -> None:
    reference = RustTokenizer.from_file(str(BUILTIN / "tokenizer.json"))
    for text in ("Hello  world\n\n1234 é 😀", "", "  ", "def f(x): return x"):
        assert tokenizer.encode_text(text) == reference.encode(text).ids


@pytest.mark.parametrize("text", ["hi", "<|bos|>hi", "<|bos|><|bos|>hi"])
def test_bos_stands_exactly_once(text: str) -> None:
    """Two of them, or none, and the model answers worse without anybody knowing why."""
    ids = Tokenizer(files(add_bos_token=True), INFO).encode_prompt(text)
    assert ids[0] == 1
    assert ids.count(1) == 1


def test_a_model_that_wants_no_bos_gets_none() -> None:
    assert 1 not in Tokenizer(files(add_bos_token=False), INFO).encode_prompt("hi")
    no_bos = msgspec.structs.replace(INFO, bos_token_id=None)
    assert 1 not in Tokenizer(files(), no_bos).encode_prompt("hi")


def test_a_post_processor_decides_about_bos_when_nothing_else_does() -> None:
    spec = TokenizerFiles.read(BUILTIN).spec
    bos = {"SpecialToken": {"id": "<|bos|>", "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|bos|>": {"id": "<|bos|>", "ids": [1], "tokens": ["<|bos|>"]}},
    }
    with_template = TokenizerFiles({**spec, "post_processor": template}, {"model_max_length": 8}, None)
    assert Tokenizer(with_template, INFO).encode_prompt("hi")[0] == 1
    assert Tokenizer(files(model_max_length=8), INFO).encode_prompt("hi")[0] != 1


def test_bytes_of_tokens_put_together_are_the_text(tokenizer: Tokenizer) -> None:
    """Clients rebuild characters from the bytes that log-probabilities carry."""
    text = "né 😀 x"
    raw = [byte for token in tokenizer.encode_text(text) for byte in tokenizer.texts.token_bytes(token) or []]
    assert bytes(raw).decode() == text


def test_tokens_that_are_no_character_have_distinct_names(tokenizer: Tokenizer) -> None:
    names = [tokenizer.texts.token_text(token) for token in tokenizer.encode_text("😀")]
    assert len(set(names)) == len(names)
    assert names[0].startswith("bytes:\\x")


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_damaged_tokenizer_is_one_clear_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json"):
        TokenizerFiles.read(tmp_path)


def test_a_missing_tokenizer_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"no tokenizer\.json"):
        TokenizerFiles.read(tmp_path)


def test_templates_are_found_where_publishers_put_them(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text((BUILTIN / "tokenizer.json").read_text())
    assert TokenizerFiles.read(tmp_path).chat_template is None
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert TokenizerFiles.read(tmp_path).chat_template == "D"
    (tmp_path / "chat_template.jinja").write_text("J")
    assert TokenizerFiles.read(tmp_path).chat_template == "J"


def test_a_model_without_a_tokenizer_can_still_be_measured() -> None:
    """Every id must have text, or a stream of random weights would look as if nothing came."""
    dummy = Tokenizer(TokenizerFiles.dummy(INFO), INFO)
    assert dummy.decode(dummy.encode_prompt("Hi \u00e9!")) == "Hi \u00e9!"
    assert all(dummy.decode([token], skip_special_tokens=False) for token in range(INFO.vocab_size))
    assert not {0, 5} & set(dummy.encode_prompt("<|5|><|0|>"))
    assert dummy.chat_template is not None
