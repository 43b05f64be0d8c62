"""The fields that ask for structured output. If one fails, an SDK's request for a schema is refused or misread."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from engine.request import Grammar
from server.api.structured_outputs import ResponseFormat, StructuredOutputs, check_grammar_mode, requested_grammar
from server.http.errors import BadRequest

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
        {"structured_outputs": {"grammar": "root ::= a"}},
        {"structured_outputs": {"json": {}, "whitespace_pattern": " *"}},
    ],
)
def test_what_would_not_be_honoured_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        grammar_of(**fields)


def test_two_forms_at_once_are_refused() -> None:
    with pytest.raises(BadRequest, match="send one of them"):
        grammar_of(response_format={"type": "json_object"}, structured_outputs={"regex": "a"})


def test_diffusion_is_refused_with_what_can_be_used_instead() -> None:
    """Half of an answer would follow the schema, or a client would not know what to change."""
    modes = ("ar", "diffusion", "speculative", "auto")
    for mode in ("ar", "speculative", "auto"):
        check_grammar_mode("response_format", mode, modes, infill=False)
    with pytest.raises(BadRequest, match="use one of: ar, speculative, auto") as refused:
        check_grammar_mode("response_format", "diffusion", modes, infill=False)
    assert refused.value.param == "response_format"
    with pytest.raises(BadRequest, match="suffix"):
        check_grammar_mode("structured_outputs", "auto", modes, infill=True)
    with pytest.raises(BadRequest, match="no other mode"):
        check_grammar_mode("response_format", "diffusion", ("diffusion",), infill=False)
