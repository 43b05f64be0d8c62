"""Schemas of every keyword, drawn at random, and answers drawn at random from their grammars."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from llguidance import LLTokenizer
from tokenizers.pre_tokenizers import ByteLevel

from engine.grammar.compiler import compile_grammar
from engine.grammar.state import CompiledGrammar, GrammarVocabulary
from engine.request import Grammar

OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TREE = {"type": "object", "properties": {"v": {"type": "integer"}, "next": {"$ref": "#"}}, "required": ["v"]}
REPEATED = settings(deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))
END = 0
NAMES = ("a", "b", "c", "a b", "é")
PUNCTUATION = frozenset('"{}[],:0123456789\\')
CLOSING = frozenset('"}]')
_BYTES = sorted(ByteLevel.alphabet())
_WORDS = ['":', '",', '": ', '{"', '"}', "true", "null", '"a"', ", "]


@cache
def byte_vocabulary() -> GrammarVocabulary:
    """A vocabulary that can write any text: every byte, and a few longer tokens."""
    spelled = [word.replace(" ", "Ġ") for word in _WORDS]
    special = {"id": END, "content": "<end>", "special": True, "single_word": False, "lstrip": False, "rstrip": False,
               "normalized": False}  # fmt: skip
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "fuse_unk": False,
        "end_of_word_suffix": None, "byte_fallback": False, "ignore_merges": False, "merges": [],
        "vocab": {text: i for i, text in enumerate(["<end>", *_BYTES, *spelled])},
    }  # fmt: skip
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [special], "normalizer": None,
        "pre_tokenizer": level, "post_processor": None, "decoder": level, "model": model,
    }  # fmt: skip
    return GrammarVocabulary(LLTokenizer(json.dumps(tokenizer), eos_token=[END]), frozenset({END}))


def compile_schema(schema: Any, *, compact: bool = False) -> CompiledGrammar:
    """schema: a value, or its text. Raises RequestError."""
    source = schema if isinstance(schema, str) else json.dumps(schema)
    return compile_grammar(byte_vocabulary(), Grammar(kind="json_schema", source=source, compact=compact))


def accepts(schema: Any, text: str, *, compact: bool = False) -> bool:
    """Whether the grammar of a schema lets an answer be exactly this text, which is ASCII."""
    matcher = compile_schema(schema, compact=compact).matcher.deep_copy()
    tokens = [byte_vocabulary().tokenizer.greedy_tokenize(char)[0] for char in text]
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@dataclass(frozen=True)
class Answer:
    """What came of following a grammar at random."""

    text: str
    is_whole: bool
    """The grammar let it end. Otherwise it was cut off."""


class DeadEnd(AssertionError):
    """A grammar allowed a beginning that nothing can complete."""


def random_answer(compiled: CompiledGrammar, seed: int, *, steps: int = 160) -> Answer:
    """An answer that ends soon after it may. Raises DeadEnd."""
    rng, matcher, tokenizer = random.Random(seed), compiled.matcher.deep_copy(), compiled.vocabulary.tokenizer
    text = b""
    for step in range(steps):
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist()
        if matcher.is_error() or not allowed:
            raise DeadEnd(f"nothing may follow {text!r}: {matcher.get_error()}")
        if END in allowed and (len(allowed) == 1 or rng.random() < 0.4 or step > steps / 2):
            return Answer(text.decode(), True)
        words = [token for token in allowed if token != END]
        likely = CLOSING if step > steps / 3 else PUNCTUATION
        wanted = [token for token in words if tokenizer.decode_str([token])[-1:] in likely]
        token = rng.choice(wanted if wanted and rng.random() < 0.7 else words)
        text += tokenizer.decode_bytes([token])
        matcher.consume_token(token)
    return Answer(text.decode(errors="replace"), False)


# --- schemas at random ------------------------------------------------------------------------------------------------

_NUMBERS = st.one_of(
    st.integers(-20, 20), st.sampled_from([0.5, -0.25, 2.75, 1e-3, 10**6, 2**53, 2**53 + 1, 10**22, 1.1, -7.3])
)
_VALUES: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), _NUMBERS, st.sampled_from(["", "a", "é", 'x"y', "\n", "a/b", "\x01"]),
    st.just([1, "a"]), st.just({"a": 1}), st.just([]), st.just({}),
)  # fmt: skip
_NAME = st.sampled_from(NAMES)
_TYPE = st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"])
_PATTERN = st.sampled_from(["^a", "b$", "^[a-c]{1,3}$", "^x", "^\\d+$", "", "[^a-z]", "^(a|b)*$"])
_FORMAT = st.sampled_from(["date", "time", "uuid", "ipv4", "hostname", "password", "binary", "byte", "regex", "path"])


def _limits() -> dict[str, st.SearchStrategy[Any]]:
    count = st.integers(0, 4)
    return {
        "minimum": _NUMBERS, "maximum": _NUMBERS, "exclusiveMinimum": _NUMBERS, "exclusiveMaximum": _NUMBERS,
        "multipleOf": st.sampled_from([1, 2, 3, 0.5, 0.01, 7, 100000]), "minLength": count, "maxLength": count,
        "pattern": _PATTERN, "format": _FORMAT, "minItems": count, "maxItems": count, "maxProperties": count,
        "minProperties": st.integers(0, 2), "uniqueItems": st.booleans(), "title": st.just("t"), "default": _VALUES,
        "enum": st.lists(_VALUES, min_size=1, max_size=3), "const": _VALUES,
        "required": st.lists(_NAME, max_size=2, unique=True), "deprecated": st.booleans(),
    }  # fmt: skip


def _nested(inner: st.SearchStrategy[Any]) -> dict[str, st.SearchStrategy[Any]]:
    some = st.lists(inner, min_size=1, max_size=2)
    return {
        "properties": st.dictionaries(_NAME, inner, max_size=3), "additionalProperties": inner,
        "patternProperties": st.dictionaries(_PATTERN, inner, min_size=1, max_size=2), "items": inner,
        "prefixItems": st.lists(inner, max_size=2), "allOf": some, "anyOf": some, "oneOf": some,
        "unevaluatedProperties": inner, "unevaluatedItems": inner, "$ref": st.sampled_from(["#", "#/$defs/d"]),
        "not": inner, "if": inner, "then": inner, "contains": inner, "propertyNames": inner,
        "dependentRequired": st.dictionaries(_NAME, st.lists(_NAME, max_size=1), max_size=1),
    }  # fmt: skip


def _objects(inner: st.SearchStrategy[Any] | None) -> st.SearchStrategy[Any]:
    """Schemas of a type and a few keywords, of which the most usual come most often."""
    keywords = _limits() | (_nested(inner) if inner is not None else {})
    usual = [name for name in ("properties", "required", "allOf", "anyOf", "items", "$ref") if name in keywords]
    names = st.lists(
        st.one_of(st.sampled_from(sorted(keywords)), *([st.sampled_from(usual)] * 2)), max_size=3, unique=True
    )

    @st.composite
    def draw(draw: st.DrawFn) -> dict[str, Any]:
        schema: dict[str, Any] = {}
        if draw(st.integers(0, 4)):
            schema["type"] = draw(
                st.one_of(_TYPE, st.just("object"), st.lists(_TYPE, min_size=1, max_size=2, unique=True))
            )
        for name in draw(names):
            schema[name] = draw(keywords[name])
        return schema

    return draw()


_LEAF = st.one_of(st.booleans(), _objects(None), _objects(None))
_MIDDLE = st.one_of(_LEAF, _objects(_LEAF))


@st.composite
def schemas(draw: st.DrawFn) -> dict[str, Any]:
    """A whole schema of any keywords, up to three levels deep, with one definition."""
    schema: dict[str, Any] = draw(_objects(_MIDDLE))
    return schema | {"$defs": {"d": draw(_MIDDLE)}}
