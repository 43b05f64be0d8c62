"""Prompts to measure with: a JSONL file of {"prompt": templated text, "answer": text or null}."""

from __future__ import annotations

from pathlib import Path

import msgspec
from tokenizers import Tokenizer

import engine.builtin
from engine.errors import ConfigError

BUILTIN_PROMPTS = Path(engine.builtin.__file__).with_name("prompts.jsonl")


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt, spelled with the control tokens its model expects, without the BOS token."""

    prompt: str
    answer: str | None = None
    """The one right answer, letter for letter; None where there is none."""
    category: str = ""


def read_prompts(path: Path) -> list[Prompt]:
    """Raises ConfigError naming the file, and the line that is wrong."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    prompts = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                prompts.append(msgspec.json.decode(line, type=Prompt))
            except msgspec.MsgspecError as error:
                raise ConfigError(f"{path}, line {number}: {error}") from None
    if not prompts:
        raise ConfigError(f"{path} holds no prompts")
    return prompts


class Text:
    """The model's tokenizer, as far as a benchmark needs it."""

    def __init__(self, directory: Path, bos_token_id: int | None) -> None:
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._bos = [] if bos_token_id is None else [bos_token_id]

    def encode(self, text: str) -> list[int]:
        """Token ids, BOS first; control tokens may be spelled."""
        return self._bos + self.encode_answer(text)

    def encode_answer(self, text: str) -> list[int]:
        """Token ids of a text that follows another."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: list[int]) -> str:
        """The text without control tokens."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))
