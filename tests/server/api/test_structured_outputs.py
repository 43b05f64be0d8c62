"""The fields that ask for structured output. If one fails, an SDK's request for a schema is refused or misread."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from engine.request import Grammar
from server.api.structured_outputs import (
    ResponseFormat,
    StructuredOutputs,
    check_stop_tokens,
    refuse_infilled_grammar,
    requested_grammar,
)
from server.generation.job import RequestedGrammar
from server.http.errors import BadRequest
from tests.fakes import INFO, builtin_tokenizer

SCHEMA = {"type": "object", "properties": {"é": {"type": "integer"}}, "required": ["é"], "additionalProperties": False}
NAMED = {"name": "answer", "schema": SCHEMA, "strict": True, "description": "What was asked."}


def grammar_of(**fields: Any) -> Grammar | None:
    form = ResponseFormat.model_validate(fields["response_format"]) if "response_format" in fields else None
    vllm = StructuredOutputs.model_validate(fields["structured_outputs"]) if "structured_outputs" in fields else None
    asked = requested_grammar(form, vllm)
    return asked.grammar if asked is not None else None


@pytest.mark.parametrize(
    ("field", "value", "kind", "source"),
    [
        ("response_format", {"type": "json_schema", "json_schema": NAMED}, "json_schema", SCHEMA),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}, "json_schema", {}),
        ("response_format", {"type": "json_object"}, "json_object", None),
        ("structured_outputs", {"json": SCHEMA}, "json_schema", SCHEMA),
        ("structured_outputs", {"json": json.dumps(SCHEMA)}, "json_schema", SCHEMA),
        ("structured_outputs", {"choice": ["yes", "nö"]}, "choice", ["yes", "nö"]),
        ("structured_outputs", {"json_object": True}, "json_object", None),
    ],
)
def test_each_spelling_has_its_meaning(field: str, value: Any, kind: str, source: Any) -> None:
    grammar = grammar_of(**{field: value})
    assert grammar is not None
    assert grammar.kind == kind
    assert (json.loads(grammar.source) if grammar.source else None) == source


def test_a_regex_is_taken_as_it_is() -> None:
    assert grammar_of(structured_outputs={"regex": "a\\d"}) == Grammar(kind="regex", source="a\\d")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": {"type": "text"}},
        {"structured_outputs": {}},
        {"structured_outputs": {"json": None, "json_object": False}},
        {"response_format": {"type": "text", "json_schema": None}},
        {
            "structured_outputs": dict.fromkeys(
                (
                    "json",
                    "regex",
                    "choice",
                    "json_object",
                    "grammar",
                    "structural_tag",
                    "whitespace_pattern",
                    "_backend",
                )
            )
        },
        {"structured_outputs": {"disable_any_whitespace": True, "disable_additional_properties": True}},
        {"response_format": {"type": "text"}, "structured_outputs": {}},
    ],
)
def test_neutral_values_ask_for_nothing(fields: dict[str, Any]) -> None:
    assert grammar_of(**fields) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {}},
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_object", "json_schema": NAMED}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": True}}},
        {"structured_outputs": {"json": {}, "regex": "a"}},
        {"structured_outputs": {"choice": "yes"}},
        {"structured_outputs": {"choice": [1]}},
        {"structured_outputs": {"grammar": "root ::= a", "regex": "a"}},
        {"structured_outputs": {"grammar": 7}},
        {"structured_outputs": {"json": {}, "whitespace_pattern": " *"}},
        {"structured_outputs": {"json": {}, "structural_tag": "x"}},
        {"structured_outputs": {"json": {}, "_backend": "xgrammar"}},
        {"structured_outputs": {"json": {}, "disable_any_whitespace": 1}},
        {"structured_outputs": {"json": {}, "unknown": None}},
        {"response_format": {"type": None}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": None, "schema": {}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": None}}},
    ],
)
def test_what_would_not_be_honoured_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        grammar_of(**fields)


@pytest.mark.parametrize("name", ["structural_tag", "whitespace_pattern", "_backend"])
def test_what_vllm_knows_and_this_server_does_not_is_refused_by_name(name: str) -> None:
    """A client would look for a mistake in its spelling."""
    with pytest.raises(ValidationError, match=f"'{name}', which is not supported"):
        grammar_of(structured_outputs={"json": {}, name: "x"})


@pytest.mark.parametrize(
    "fields",
    [
        {"structured_outputs": {"json": SCHEMA, "regex": None, "choice": None, "json_object": None, "grammar": None,
                                "disable_fallback": False, "disable_any_whitespace": None,
                                "disable_additional_properties": False, "whitespace_pattern": None}},
        {"response_format": {"type": "json_schema", "json_schema": NAMED | {"strict": None, "description": None}}},
    ],
)  # fmt: skip
def test_null_members_are_not_sent(fields: dict[str, Any]) -> None:
    """An SDK that writes out its defaults would be refused."""
    grammar = grammar_of(**fields)
    assert grammar is not None
    assert json.loads(grammar.source) == SCHEMA


def test_nulls_within_a_schema_are_values() -> None:
    """`const: null` would lose its constant."""
    wanted = {"const": None, "enum": [None], "default": None}
    grammar = grammar_of(structured_outputs={"json": wanted})
    assert grammar is not None
    assert json.loads(grammar.source) == wanted


def test_white_space_can_be_disabled() -> None:
    """The field would be accepted and mean nothing."""
    for form in ({"json": SCHEMA}, {"json_object": True}):
        for compact in (True, False):
            grammar = grammar_of(structured_outputs=form | {"disable_any_whitespace": compact})
            assert grammar is not None
            assert grammar.compact is compact


def test_a_stop_token_that_the_form_may_need_is_refused() -> None:
    """The answer could never be whole: it would fail in its middle."""
    tokenizer = builtin_tokenizer()
    brace, line = tokenizer.encode_text("}"), tokenizer.encode_text("\n")
    assert len(brace) == len(line) == 1
    for kind in ("json_schema", "json_object", "regex", "choice"):
        wanted = RequestedGrammar(Grammar(kind=kind, source="{}"), "response_format")  # type: ignore[arg-type]
        check_stop_tokens(wanted, [*INFO.end_token_ids, 10**9], tokenizer)
        with pytest.raises(BadRequest, match="response_format") as refused:
            check_stop_tokens(wanted, brace, tokenizer)
        assert refused.value.param == "stop_token_ids"
        if kind.startswith("json"):
            check_stop_tokens(wanted, line, tokenizer)  # a line break is never within JSON here


def test_two_forms_at_once_are_refused() -> None:
    with pytest.raises(BadRequest, match="send one of them"):
        grammar_of(response_format={"type": "json_object"}, structured_outputs={"regex": "a"})


def test_a_form_for_what_a_suffix_follows_is_refused() -> None:
    """Half of an answer would follow the schema, or a client would not know what to change."""
    for field in ("response_format", "structured_outputs"):
        with pytest.raises(BadRequest, match="suffix") as refused:
            refuse_infilled_grammar(field)
        assert refused.value.param == field


def test_a_grammar_is_passed_on_as_it_is_written() -> None:
    """It is compiled by the library, in either of the two languages that vLLM's clients write."""
    for rules in ('start: "yes" | "no"', 'root ::= "yes" | "no"'):
        assert grammar_of(structured_outputs={"grammar": rules}) == Grammar(kind="lark", source=rules)
