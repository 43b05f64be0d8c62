"""The text and the bytes that each token of a tokenizer stands for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")


class TokenTexts:
    """Turns tokens into text, by themselves or in a row. None of its methods raises for any token id."""

    def __init__(self, rust: RustTokenizer, spec: Mapping[str, Any], control: Mapping[str, int]) -> None:
        """rust: the tokenizer that decodes. spec: its tokenizer.json. control: its control tokens by spelling."""
        self._rust = rust
        self._control = set(control)
        self._special = {token for token, added in rust.get_added_tokens_decoder().items() if added.special}
        kinds = _kinds_of(spec.get("decoder"))
        self.byte_level = "ByteLevel" in kinds and kinds <= {"ByteLevel", "Fuse"}
        """Text is the tokens' bytes, read as UTF-8."""
        self.has_byte_tokens = "ByteFallback" in kinds
        """Characters outside the vocabulary are written with one token for each of their bytes."""
        self._byte_tokens = _byte_tokens(rust) if self.has_byte_tokens else {}
        self.may_split_characters = "ByteLevel" in kinds and not self.byte_level
        """Some tokens may be a part of a character, and their bytes alone do not tell which."""
        self.token_text = lru_cache(maxsize=65536)(self._token_text)
        # Facts about tokens, found when they are first needed.
        self._raw: dict[int, bytes | None] = {}
        self._skips: dict[int, bool] = {}

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Token ids as text; ids without text (padding rows of the embedding) are empty."""
        text: str = self._rust.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    def decode_inner(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of tokens that stand in the middle of a text: many tokenizers leave out a space at its start."""
        if self.byte_level:
            return self.decode(token_ids, skip_special_tokens=skip_special_tokens)
        once = self.decode(token_ids, skip_special_tokens=skip_special_tokens)
        twice = self.decode([*token_ids, *token_ids], skip_special_tokens=skip_special_tokens)
        return twice[len(once) :] or once

    def is_skipped(self, token_id: int) -> bool:
        """Whether the token is no part of an answer's text: a control token, or an id that the tokenizer lacks."""
        try:
            return self._skips[token_id]
        except KeyError:
            skips = token_id in self._special or self._rust.id_to_token(token_id) is None
            self._skips[token_id] = skips
            return skips

    def raw(self, token_id: int) -> bytes | None:
        """The bytes of a token of a byte-level tokenizer; None for an id that it lacks."""
        try:
            return self._raw[token_id]
        except KeyError:
            piece = self._rust.id_to_token(token_id)
            raw = self._raw[token_id] = None if piece is None else _byte_level_bytes(piece)
            return raw

    def byte_of(self, token_id: int) -> int | None:
        """The byte that a byte token stands for; None where the token is none."""
        return self._byte_tokens.get(token_id)

    def token_bytes(self, token_id: int) -> list[int] | None:
        """The UTF-8 bytes a token stands for; None where the tokenizer does not say."""
        piece = self._rust.id_to_token(token_id)
        if piece is None:
            return None
        if piece in self._control:
            return list(piece.encode())
        byte = self.byte_of(token_id)
        if byte is not None:
            return [byte]
        if self.byte_level:
            return list(self.raw(token_id) or b"")
        text = self.decode_inner([token_id], skip_special_tokens=False)
        if "\ufffd" in text and self.may_split_characters:
            return list(_byte_level_bytes(piece))
        return list(text.encode())

    def display(self, token_id: int) -> str:
        """One token as it reads in the middle of a text, control tokens by their spelling; half characters: U+FFFD."""
        raw = self.token_bytes(token_id)
        return "" if raw is None else bytes(raw).decode("utf-8", "replace")

    def _token_text(self, token_id: int) -> str:
        """Like `display`, but bytes that are no character are written as `bytes:\\x..`, so that names differ."""
        raw = bytes(self.token_bytes(token_id) or ())
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _kinds_of(decoder: Any) -> set[str]:
    """The kinds of the steps of a decoder in tokenizer.json; empty where there is none."""
    if not isinstance(decoder, dict):
        return set()
    steps = decoder.get("decoders")
    return set().union(*map(_kinds_of, steps)) if isinstance(steps, list) else {str(decoder.get("type"))}


def _byte_tokens(rust: RustTokenizer) -> dict[int, int]:
    """The bytes of the byte tokens, by id."""
    found = {token: _BYTE_TOKEN.fullmatch(piece) for piece, token in rust.get_vocab(with_added_tokens=True).items()}
    return {token: int(match[1], 16) for token, match in found.items() if match is not None}


@lru_cache(maxsize=1)
def byte_alphabet() -> dict[str, int]:
    """Byte-level BPE writes each byte as a printable character: itself where it is one, else the next from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


def _byte_level_bytes(piece: str) -> bytes:
    """A piece as the library's ByteLevel decoder reads it: one that holds any other character is itself text."""
    alphabet = byte_alphabet()
    raw = [alphabet.get(char) for char in piece]
    return piece.encode() if None in raw else bytes(byte for byte in raw if byte is not None)
