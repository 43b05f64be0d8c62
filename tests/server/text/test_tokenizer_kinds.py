"""Encoding and offsets with tokenizers of every kind."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

from engine.config import EngineInfo
from server.text.tokenizer import EncodingError, Tokenizer, TokenizerFiles
from tests.fakes import INFO
from tests.server.text.kinds import KINDS, SPECIAL, spec_of

RUST = {name: make() for name, make in KINDS.items()}


def info_of(rust: RustTokenizer) -> EngineInfo:
    return msgspec.structs.replace(
        INFO, vocab_size=rust.get_vocab_size(), bos_token_id=1, end_token_ids=(2,), mask_token_id=3,
        banned_token_ids=(3, 0),
    )  # fmt: skip


def make(name: str, **config: Any) -> Tokenizer:
    return Tokenizer(TokenizerFiles(spec_of(RUST[name]), config, None), info_of(RUST[name]))


TOKENIZERS = {name: make(name, add_bos_token=True) for name in KINDS}

TEXT = st.lists(
    st.sampled_from(["hello", " ", "world", "ok", "x", "日本", "é", "ﬁ", "<s>", "</s>", "<mask>", "<note>", "\n", "H"])
).map("".join)


@pytest.mark.parametrize("name", KINDS)
@given(text=st.one_of(TEXT, st.text(st.characters(exclude_categories=["Cs"]), max_size=12)))
@settings(max_examples=100, deadline=None)
def test_text_is_encoded_as_the_library_does(name: str, text: str) -> None:
    """An unknown character is the unknown token, whatever that is called."""
    text = text.replace("<mask>", "")  # never a control token
    expected = RUST[name].encode(text, add_special_tokens=False).ids
    first = next((number for number, token in enumerate(expected) if token != 1), len(expected))
    assert TOKENIZERS[name].encode_prompt(text) == [1, *expected[first:]]


@pytest.mark.parametrize("name", KINDS)
@given(text=TEXT)
@settings(max_examples=100, deadline=None)
def test_plain_text_holds_no_control_token(name: str, text: str) -> None:
    assert not set(TOKENIZERS[name].encode_text(text)) & {0, 1, 2, 3}


@pytest.mark.parametrize("name", KINDS)
@given(text=TEXT)
@settings(max_examples=150, deadline=None)
def test_offsets_of_a_prompt_are_places_in_its_text(name: str, text: str) -> None:
    """Clients cut the echoed text at them."""
    tokenizer = TOKENIZERS[name]
    ids, offsets = tokenizer.encode_prompt(text), tokenizer.text_offsets(text)
    assert len(offsets) == len(ids)
    assert list(offsets) == sorted(offsets)
    assert all(0 <= offset <= len(text) for offset in offsets)


@pytest.mark.parametrize("name", ["byte_level", "gemma"])
@given(text=TEXT, bos=st.integers(0, 2))
@settings(max_examples=150, deadline=None)
def test_text_between_offsets_is_the_tokens_text(name: str, text: str, bos: int) -> None:
    """Where no text is changed, each token's own text lies between its offset and the next one."""
    tokenizer = TOKENIZERS[name]
    text = "<s>" * bos + text.replace("<mask>", "")
    ids, offsets = tokenizer.encode_prompt(text), tokenizer.text_offsets(text)
    spelled = len(text) - len(text.removeprefix("<s>" * bos)) if bos else 0
    while text[spelled:].startswith("<s>"):
        spelled += 3
    assert text[: offsets[1] if len(offsets) > 1 else spelled] == "<s>" * (spelled // 3)
    for token, (start, end) in zip(ids[1:], pairwise([*offsets[1:], len(text)]), strict=True):
        shown = tokenizer.texts.display(token)
        assert text[start:end] == shown or "\ufffd" in shown


@pytest.mark.parametrize("name", KINDS)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_offsets_of_ids_are_places_in_their_text(name: str, data: st.DataObject) -> None:
    size = RUST[name].get_vocab_size()
    ids = data.draw(st.lists(st.integers(0, size - 1), max_size=20))
    text = TOKENIZERS[name].decode(ids, skip_special_tokens=False)
    offsets = TOKENIZERS[name].id_offsets(ids)
    assert len(offsets) == len(ids)
    assert list(offsets) == sorted(offsets)
    assert all(0 <= offset <= len(text) for offset in offsets)


@pytest.mark.parametrize("name", KINDS)
def test_offsets_of_ids_cut_a_text_where_its_tokens_meet(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = RUST[name].encode("x hello x world", add_special_tokens=False).ids
    text, offsets = tokenizer.decode(ids, skip_special_tokens=False), tokenizer.id_offsets(ids)
    for count in range(1, len(ids)):
        assert text[: offsets[count]] == tokenizer.decode(ids[:count], skip_special_tokens=False)


def test_a_text_that_cannot_be_encoded_is_one_clear_error() -> None:
    """A vocabulary of whole words without an unknown token has nothing for other words."""
    rust = RustTokenizer(models.WordLevel({"hello": 5, **{text: at for at, text in enumerate(SPECIAL)}}, "[none]"))
    rust.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = Tokenizer(TokenizerFiles(spec_of(rust), {}, None), info_of(rust))
    assert tokenizer.encode_text("hello") == [5]
    with pytest.raises(EncodingError, match="cannot encode"):
        tokenizer.encode_text("goodbye")


@pytest.mark.parametrize("spelled", [True, False])
def test_merges_do_not_build_a_control_token(spelled: bool) -> None:
    """A control token that was trained as ordinary text is built from its letters as well as matched whole."""
    letters = ["<", "e", ">", "<e", "<e>"]
    vocab = {text: token for token, text in enumerate([*SPECIAL, *letters])}
    rust = RustTokenizer(models.BPE(vocab=vocab, merges=[("<", "e"), ("<e", ">")]))
    rust.add_special_tokens([AddedToken("<e>", special=True, normalized=False)])
    spec = spec_of(rust)
    if spelled:
        spec["model"]["merges"] = [" ".join(merge) for merge in spec["model"]["merges"]]
    tokenizer = Tokenizer(TokenizerFiles(spec, {"add_bos_token": False}, None), info_of(rust))
    assert vocab["<e>"] not in tokenizer.encode_text("<e>")
    assert tokenizer.encode_prompt("<e>") == [vocab["<e>"]]
