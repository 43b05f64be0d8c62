"""What a grammar is tested with: a tokenizer of 88 entries for the tiny checkpoint, and grammars with their checks."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.grammar.compiler import compile_grammar, load_vocabulary
from engine.grammar.state import CompiledGrammar, GrammarState, GrammarVocabulary, token_masks
from engine.request import Grammar
from tests.reference.checkpoints import EOS, MASK, write_checkpoint

SPECIALS = ("<|pad|>", "<|bos|>", "<|eos|>", "<|user|>", "<|end|>", "<|mask|>")
TEXTS = [*'{}[]":, \n\\.-+', *"0123456789", *"abcdefghijklmnopqrstuvwxyz", *"ABCDEXYZ"]
TEXTS += ['{"', '":', '": ', '",', ' "', "tr", "ue", "fal", "se", "null", "ab", "ba", "aba", "12", "00", "  ", "yes"]
TEXTS += ["no", "item", "ount", "co", '"}', "]}", "}]"]
SPELLING = {" ": "Ġ", "\n": "Ċ"}
"""Byte-level BPE's names of the bytes that are not their own."""
MODEL_VOCABULARY = 96
"""Ids of the tiny checkpoint; the last few have no text."""
TOKENS = [*SPECIALS, *TEXTS]


CLOSING = {EOS: 8.0} | {TOKENS.index(text): bias for text, bias in (('"', 8.0), ('"}', 8.0), (".", 8.0), ("}", 20.0))}
"""A random model rarely closes what it has opened."""


def write_tokenizer(path: Path) -> None:
    """A tokenizer.json of byte-level BPE with the entries of TOKENS. It has no merges: tests encode by id."""
    vocab = {"".join(SPELLING.get(char, char) for char in text): i for i, text in enumerate(TOKENS)}
    added = [
        {"id": i, "content": text, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False}
        for i, text in enumerate(SPECIALS)
    ]  # fmt: skip
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model: dict[str, Any] = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "fuse_unk": False,
        "end_of_word_suffix": None, "byte_fallback": False, "ignore_merges": False, "vocab": vocab, "merges": [],
    }  # fmt: skip
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level, "model": model,
    }  # fmt: skip
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


def write_text_checkpoint(directory: Path, **options: Any) -> Path:
    """The tiny random checkpoint, with a tokenizer."""
    write_checkpoint(directory, vocab_size=MODEL_VOCABULARY, **options)
    write_tokenizer(directory / "tokenizer.json")
    return directory


def text_of(token_ids: list[int]) -> str:
    """The text of generated tokens, which hold no control token."""
    return "".join(TOKENS[token] for token in token_ids)


def schema(value: Any) -> Grammar:
    return Grammar(kind="json_schema", source=json.dumps(value))


def regex(expression: str) -> Grammar:
    return Grammar(kind="regex", source=expression)


def choice(*choices: str) -> Grammar:
    return Grammar(kind="choice", source=json.dumps(choices))


def vocabulary(directory: Path, end_token_ids: tuple[int, ...] = (EOS,)) -> GrammarVocabulary:
    return load_vocabulary(directory / "tokenizer.json", MODEL_VOCABULARY, end_token_ids, MASK)


def compiled(directory: Path, grammar: Grammar) -> CompiledGrammar:
    return compile_grammar(vocabulary(directory), grammar)


@dataclass
class Follower:
    """An answer under a grammar: its state, and a prompt of two tokens followed by what has settled."""

    state: GrammarState
    token_ids: list[int]


def follower(
    compiled_grammar: CompiledGrammar,
    tokens: list[int],
    *,
    stop_token_ids: tuple[int, ...] = (),
    ignore_eos: bool = False,
) -> Follower:
    """An answer that has generated `tokens` under a grammar."""
    ends = frozenset(stop_token_ids) | (frozenset() if ignore_eos else {EOS})
    return Follower(GrammarState(compiled_grammar, ends, answer_start=2), [7, 8, *tokens])


def masks_of(followers: list[Follower], drafts: list[list[int]], num_rows: int) -> np.ndarray:
    """`token_masks` of several answers."""
    states, token_ids = [each.state for each in followers], [each.token_ids for each in followers]
    return token_masks(states, token_ids, drafts, num_rows)


def allowed(mask: np.ndarray) -> set[int]:
    """Ids whose bits are set. mask: [bytes]."""
    return set(np.flatnonzero(np.unpackbits(mask, bitorder="little")).tolist())


def is_person(text: str) -> bool:
    value = json.loads(text)
    return (
        set(value) == {"co", "ab"}
        and type(value["co"]) is int
        and 0 <= value["co"] <= 99
        and value["ab"] in (["yes"], ["no"], ["yes", "no"], ["no", "yes"], ["no", "no"], ["yes", "yes"])
    )


PERSON = {
    "type": "object",
    "properties": {
        "co": {"type": "integer", "minimum": 0, "maximum": 99},
        "ab": {"type": "array", "items": {"enum": ["yes", "no"]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["co", "ab"],
    "additionalProperties": False,
}

GRAMMARS: dict[str, tuple[Grammar, Callable[[str], bool]]] = {
    "schema": (schema(PERSON), is_person),
    "object": (Grammar(kind="json_object"), lambda text: isinstance(json.loads(text), dict)),
    "regex": (regex(r"[ab]{6}(12|00)*\.[a-c]?"), lambda text: bool(re.fullmatch(r"[ab]{6}(12|00)*\.[a-c]?", text))),
    "choice": (choice("yes", "no", "abab", "ab"), lambda text: text in ("yes", "no", "abab", "ab")),
}
"""By name: the grammar, and an independent check of a complete text."""


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """A JSON schema of everyday keywords, up to four levels deep."""
    leaves: list[dict[str, Any]] = [
        {"type": "string", "maxLength": rng.randint(1, 9)},
        {"type": "string", "pattern": r"^[a-z]{2,5}\d?$"},
        {"type": "string", "format": rng.choice(("date", "uuid"))},
        {"type": "integer", "minimum": rng.randint(-50, 0), "maximum": rng.randint(1, 5000)},
        {"type": "number", "minimum": 0, "maximum": rng.randint(1, 99)},
        {"type": ["null", "boolean"]},
        {"enum": rng.sample(["red", "a b", "Ünïcödé", 1, 2.5, None, True, 'x"y'], 3)},
        {"const": {"a": [1, "b"]}},
    ]
    kind = rng.choice(("leaf", "object", "object", "array", "any")) if depth < 3 else "leaf"
    if kind == "leaf":
        return rng.choice(leaves)
    if kind == "array":
        return {"type": "array", "items": random_schema(rng, depth + 1), "minItems": 1, "maxItems": rng.randint(1, 4)}
    if kind == "any":
        return {"anyOf": [random_schema(rng, depth + 1), random_schema(rng, depth + 1)]}
    names = rng.sample(["name", "age", "item", "count", "x", "a longer name"], rng.randint(1, 4))
    return {
        "type": "object",
        "properties": {name: random_schema(rng, depth + 1) for name in names},
        "required": rng.sample(names, rng.randint(0, len(names))),
        "additionalProperties": False,
    }
