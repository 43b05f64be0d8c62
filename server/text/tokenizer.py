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
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from tokenizers import Encoding
from tokenizers import Tokenizer as RustTokenizer

from engine.config import EngineInfo
from engine.errors import ModelLoadError
from engine.models.files import is_present
from server.text.detokenizer import IncrementalDecoder
from server.text.dummy_tokenizer import TEMPLATE, dummy_tokenizer
from server.text.token_texts import TokenTexts, byte_alphabet

NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token", "mask_token", "sep_token", "cls_token")
"""The keys of tokenizer_config.json that transformers reads single tokens from."""


class EncodingError(ValueError):
    """The tokenizer cannot encode a text: it holds a character outside a vocabulary without an unknown token."""


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
        _check_named_tokens(directory / "tokenizer_config.json", config)
        return cls(spec, config, _read_template(directory, config))

    @classmethod
    def dummy(cls, info: EngineInfo) -> TokenizerFiles:
        """For a model of random weights that has no tokenizer of its own."""
        return cls(dummy_tokenizer(info, list(byte_alphabet())), {"add_bos_token": True}, TEMPLATE)


def _read_json(path: Path) -> dict[str, Any] | None:
    if not is_present(path):
        return None
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as exc:
        raise ModelLoadError(f"cannot read {path}: {exc}") from None
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path} does not hold a JSON object")
    return value


def _check_named_tokens(path: Path, config: dict[str, Any]) -> None:
    """Raises ModelLoadError for a token that tokenizer_config.json names by anything but its text, such as its id."""
    for key in NAMED_TOKENS:
        value = config.get(key)
        text = value.get("content") if isinstance(value, dict) else value
        if value is not None and not isinstance(text, str):
            raise ModelLoadError(f"{path}: {key} must be the token's text, not {value!r}")


def _read_template(directory: Path, config: dict[str, Any]) -> str | None:
    """chat_template.jinja wins over tokenizer_config.json's field: one template, or a list of named ones."""
    path = directory / "chat_template.jinja"
    if is_present(path):
        try:
            return path.read_text(encoding="utf-8", errors="replace")
        except OSError as exc:
            raise ModelLoadError(f"cannot read {path}: {exc}") from None
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
        self.adds_bos = _adds_bos(files, self._plain, info.bos_token_id)
        """A prompt that is text begins with BOS."""
        self.longest_token = max((len(text.encode()) for text in self._plain.get_vocab()), default=1)
        self.special_texts = _special_texts(files.config, self._plain, info)
        self.texts = TokenTexts(self._plain, files.spec, self.control_tokens)
        """Text and bytes of single tokens."""

    def encode_text(self, text: str) -> list[int]:
        """Plain text: nothing in it becomes a control token, and nothing is added."""
        return self._encode(text)

    def split_control(self, text: str) -> list[str | int]:
        """Text, cut at the control tokens that it spells; in their places stand their ids."""
        if self._template_pattern is None:
            return [text]
        pieces: list[str | int] = []
        at = 0
        for match in self._template_pattern.finditer(text):
            pieces += [text[at : match.start()], self.control_tokens[match[0]]]
            at = match.end()
        return [piece for piece in [*pieces, text[at:]] if piece != ""]

    def encode_prompt(self, text: str, *, add_bos: bool = True) -> list[int]:
        """A completion prompt: spelled control tokens count, but for mask and padding; BOS stands once, in front."""
        ids = self._encode(self._named(text, self._prompt_pattern))
        return self.with_bos(ids) if add_bos else ids

    def encode_rendered(self, text: str, marker: str) -> list[int]:
        """A rendered chat: a control token counts unless `marker` breaks its spelling; the markers vanish.

        Nothing is added: BOS is there if the template wrote it.
        """
        return self._encode(self._named(text, self._template_pattern).replace(marker, ""))

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Token ids as text; ids without text (padding rows of the embedding) are empty."""
        return self.texts.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def text_offsets(self, text: str, *, add_bos: bool = True) -> tuple[int, ...]:
        """Where in a completion prompt each of the tokens that `encode_prompt` makes of it begins.

        They never decrease. A BOS in front that the text does not spell is at 0, and so is what follows it.
        """
        encoding = self._encoding(self._named(text, self._prompt_pattern))
        places = self._places(text, [start for start, _ in encoding.offsets])
        if add_bos and self._starts_with_bos(encoding.ids):
            places = [0, *places[self._leading_bos(encoding.ids) :]]
        return tuple(accumulate(places, max))

    def id_offsets(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """Where in their own text, control tokens spelled out, each of some tokens begins."""
        length = len(self.decode(token_ids, skip_special_tokens=False))
        decoder, found = IncrementalDecoder(self.texts, skip_special_tokens=False), []
        for token_id in token_ids:
            found.append(min(decoder.offset, length))
            decoder.step(token_id)
        return tuple(found)

    # -- inside -------------------------------------------------------------------------------------------------

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._encoding(text).ids
        return ids

    def _encoding(self, text: str) -> Encoding:
        try:
            return self._guarded.encode(text, add_special_tokens=False)
        except Exception as exc:  # the tokenizers library raises bare Exception
            raise EncodingError("The model's tokenizer cannot encode this text.") from exc

    def _named(self, text: str, pattern: re.Pattern[str] | None) -> str:
        return text if pattern is None else pattern.sub(lambda match: self._names[match[0]], text)

    def _places(self, text: str, starts: list[int]) -> list[int]:
        """Places in `text`, given the places in what `_named` makes of it."""
        if self._prompt_pattern is None:
            return starts
        named, places = [0], [0]  # where each stretch begins; names and the text between them take turns
        for match in self._prompt_pattern.finditer(text):
            named.append(named[-1] + match.start() - places[-1])
            named.append(named[-1] + len(self._names[match[0]]))
            places += [match.start(), match.end()]
        found = []
        for start in starts:
            stretch = bisect_right(named, start) - 1
            found.append(places[stretch] + (start - named[stretch] if stretch % 2 == 0 else 0))
        return found

    def _leading_bos(self, ids: list[int]) -> int:
        """How many BOS stand in front."""
        return next((number for number, token in enumerate(ids) if token != self.bos_token_id), len(ids))

    def _starts_with_bos(self, ids: list[int]) -> bool:
        return self.bos_token_id is not None and (self.adds_bos or ids[:1] == [self.bos_token_id])

    def with_bos(self, ids: list[int]) -> list[int]:
        """The tokens with BOS in front, exactly once, where texts of this model begin with one."""
        bos = self.bos_token_id
        if bos is None or not self._starts_with_bos(ids):
            return ids
        return [bos, *ids[self._leading_bos(ids) :]]


def _spellings(texts: Iterable[str]) -> re.Pattern[str] | None:
    """Matches any of the spellings, the longest first, as the tokenizer itself would."""
    ordered = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(re.escape(text) for text in ordered)) if ordered else None


def _renamed(spec: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """The tokenizer with its control tokens respelled, wherever tokenizer.json spells them to encode text."""
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
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if isinstance(model.get("merges"), list):  # a merge must not build a control token out of text
        model["merges"] = [merge for merge in model["merges"] if not _spelled_by(merge) & names.keys()]
    # Without its post-processor the tokenizer adds nothing by itself, so BOS can be placed by hand, exactly once.
    return {**spec, "added_tokens": added, "model": model, "post_processor": None, "padding": None, "truncation": None}


def _spelled_by(merge: str | list[str]) -> set[str]:
    """The two pieces of a merge, and the one that it makes of them."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return {left, right, left + right}


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
    """`bos_token`, `eos_token` and so on, as chat templates expect them by name."""
    named = {**config, **_mapping(config.get("extra_special_tokens"))}
    texts: dict[str, str] = {}
    for key, value in named.items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str):
            texts[key] = text
    if texts:  # a token that tokenizer_config.json leaves out is not for the template
        return texts
    for key, token in (("bos_token", info.bos_token_id), ("eos_token", next(iter(info.end_token_ids), None))):
        if token is not None:
            texts[key] = plain.id_to_token(token) or ""
    return texts


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
