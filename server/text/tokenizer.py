"""Text to token ids and back, around a published `tokenizer.json`.

Two tokenizers are held. The *plain* one decodes. The *guarded* one encodes: it is the same tokenizer, except that every
control token is spelled by a random name nobody can guess, so that no text a user sends can ever become a control
token. Where a control token is meant (by a chat template, or spelled in a completion prompt), its ordinary spelling
is replaced by that name before the one call that encodes, which leaves all else as the tokenizer's authors made it.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RustTokenizer
from tokenizers.decoders import DecodeStream

from engine.config import EngineInfo
from engine.errors import ModelLoadError
from server.text.dummy_tokenizer import TEMPLATE, dummy_tokenizer


@dataclass(frozen=True)
class TokenizerFiles:
    """A model directory's tokenizer as read from disk, before it is known which tokens the engine bans."""

    spec: dict[str, Any]
    """tokenizer.json"""
    config: dict[str, Any]
    """tokenizer_config.json, or empty"""
    chat_template: str | None

    @classmethod
    def read(cls, directory: Path) -> TokenizerFiles:
        """Reads what is there; raises ModelLoadError when there is no usable tokenizer."""
        spec = _read_json(directory / "tokenizer.json")
        if spec is None:
            raise ModelLoadError(f"{directory} has no tokenizer.json")
        config = _read_json(directory / "tokenizer_config.json") or {}
        return cls(spec, config, _read_template(directory, config))

    @classmethod
    def dummy(cls, info: EngineInfo) -> TokenizerFiles:
        """For a model of random weights that has no tokenizer of its own."""
        return cls(dummy_tokenizer(info, list(_byte_alphabet())), {"add_bos_token": True}, TEMPLATE)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        raise ModelLoadError(f"cannot read {path}: {exc}") from None
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path} does not hold a JSON object")
    return value


def _read_template(directory: Path, config: dict[str, Any]) -> str | None:
    """chat_template.jinja wins over tokenizer_config.json's field: one template, or a list of named ones."""
    try:
        return (directory / "chat_template.jinja").read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


class Tokenizer:
    """Encodes prompts, content and chat, decodes answers. Safe to use from several threads."""

    def __init__(self, files: TokenizerFiles, info: EngineInfo) -> None:
        self.chat_template = files.chat_template
        self._plain = RustTokenizer.from_str(json.dumps(files.spec))
        added = {entry["content"]: entry["id"] for entry in files.spec.get("added_tokens", ())}
        special = {entry["content"] for entry in files.spec.get("added_tokens", ()) if entry.get("special")}
        reserved = {*info.banned_token_ids, *info.end_token_ids, info.mask_token_id, info.bos_token_id}
        # A one-character control token could not be told from text by any marker; it is then never matched at all.
        self.control_tokens: dict[str, int] = {
            text: token for text, token in added.items() if text in special or token in reserved
        }
        self.vocab_size = info.vocab_size
        self.bos_token_id = info.bos_token_id
        self._names = {text: f"ctl{token}x{secrets.token_hex(16)}x" for text, token in self.control_tokens.items()}
        self._guarded = RustTokenizer.from_str(json.dumps(_renamed(files.spec, self._names)))
        banned = set(info.banned_token_ids)
        self._prompt_pattern = _spellings(text for text, token in self.control_tokens.items() if token not in banned)
        self._template_pattern = _spellings(self.control_tokens)
        self._adds_bos = _adds_bos(files, self._plain, info.bos_token_id)
        self.longest_token = max((len(text.encode()) for text in self._plain.get_vocab()), default=1)
        self.special_texts = _special_texts(files.config, self._plain, info)
        self.token_text = lru_cache(maxsize=65536)(self._token_text)

    @property
    def rust(self) -> RustTokenizer:
        """The tokenizer that decodes, for incremental decoding."""
        return self._plain

    def encode_text(self, text: str) -> list[int]:
        """Plain text: nothing in it becomes a control token, and nothing is added."""
        return self._encode(text)

    def encode_prompt(self, text: str, *, add_bos: bool = True) -> list[int]:
        """A completion prompt: spelled control tokens count, but for mask and padding; BOS stands once, in front."""
        ids = self._encode(self._named(text, self._prompt_pattern))
        return self._with_bos(ids) if add_bos else ids

    def encode_rendered(self, text: str, marker: str) -> list[int]:
        """A rendered chat: a control token counts unless `marker` breaks its spelling; the markers vanish."""
        named = self._named(text, self._template_pattern)
        return self._with_bos(self._encode(named.replace(marker, "")))

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = True) -> str:
        """Token ids as text; ids without text (padding rows of the embedding) are empty."""
        text: str = self._plain.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    def offsets(self, token_ids: list[int], *, skip_first: bool) -> tuple[int, ...]:
        """Where in their text, control tokens spelled out, each of some tokens begins; with `skip_first` the first one
        is not in it."""
        stream = DecodeStream(skip_special_tokens=False)
        place, found = 0, []
        for number, token_id in enumerate(token_ids):
            found.append(place)
            if number or not skip_first:
                place += len(stream.step(self._plain, token_id) or "")
        return tuple(found)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._guarded.encode(text, add_special_tokens=False).ids
        return ids

    def _named(self, text: str, pattern: re.Pattern[str] | None) -> str:
        return text if pattern is None else pattern.sub(lambda match: self._names[match[0]], text)

    def _with_bos(self, ids: list[int]) -> list[int]:
        bos = self.bos_token_id
        if bos is None:
            return ids
        start = 0
        while start < len(ids) and ids[start] == bos:
            start += 1
        return [bos, *ids[start:]] if start or self._adds_bos else ids

    def _token_text(self, token_id: int) -> str:
        """One token by itself, control tokens by their spelling; bytes that are no character as `bytes:\\x..`."""
        text = self.decode([token_id], skip_special_tokens=False)
        if "\ufffd" in text:
            raw = self.token_bytes(token_id)
            if raw is not None:
                return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
        return text

    def token_bytes(self, token_id: int) -> list[int] | None:
        """The UTF-8 bytes a token stands for; None where the tokenizer does not say."""
        piece = self._plain.id_to_token(token_id)
        if piece is None:
            return None
        if piece in self.control_tokens:
            return list(piece.encode())
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return [int(piece[3:5], 16)]
        text = self.decode([token_id], skip_special_tokens=False)
        if "\ufffd" not in text:
            return list(text.encode())
        alphabet = _byte_alphabet()
        if all(char in alphabet for char in piece):
            return [alphabet[char] for char in piece]
        return None


@lru_cache(maxsize=1)
def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE writes each byte as a printable character: itself where it is one, else the next from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


def _spellings(texts: Iterable[str]) -> re.Pattern[str] | None:
    """Matches any of the spellings, the longest first, as the tokenizer itself would."""
    ordered = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(re.escape(text) for text in ordered)) if ordered else None


def _renamed(spec: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """The tokenizer with its control tokens respelled, in the added tokens and in the model's own vocabulary."""
    added = [
        {**entry, "content": names[entry["content"]], "single_word": False} if entry["content"] in names else entry
        for entry in spec.get("added_tokens", ())
    ]
    model = dict(spec["model"])
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        model["vocab"] = {names.get(text, text): token for text, token in vocab.items()}
    elif isinstance(vocab, list):  # unigram: [text, score] by id
        model["vocab"] = [[names.get(text, text), score] for text, score in vocab]
    # Without its post-processor the tokenizer adds nothing by itself, so BOS can be placed by hand, exactly once.
    return {**spec, "added_tokens": added, "model": model, "post_processor": None, "padding": None, "truncation": None}


def _adds_bos(files: TokenizerFiles, plain: RustTokenizer, bos: int | None) -> bool:
    """Whether a prompt of this model starts with BOS: what tokenizer_config.json says, else what the tokenizer does."""
    if bos is None:
        return False
    configured = files.config.get("add_bos_token")
    if isinstance(configured, bool):
        return configured
    if files.spec.get("post_processor") is None and not files.config:
        return True  # the model has a BOS and nobody says that prompts go without
    return plain.encode("", add_special_tokens=True).ids[:1] == [bos]


def _special_texts(config: dict[str, Any], plain: RustTokenizer, info: EngineInfo) -> dict[str, str]:
    """`bos_token` and its kin, as chat templates expect them by name."""
    texts: dict[str, str] = {}
    for key, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str):
            texts[key] = text
    for key, token in (("bos_token", info.bos_token_id), ("eos_token", next(iter(info.end_token_ids), None))):
        if token is not None:
            texts.setdefault(key, plain.id_to_token(token) or "")
    return texts
