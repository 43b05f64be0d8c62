"""Calls drawn at random from the grammars of every format. If these fail, a call that was held is not valid."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from engine.errors import RequestError
from engine.grammar.compiler import compile_grammar
from engine.grammar.structure import Exact, Inner, Node, Token, structure_grammar
from engine.request import Grammar
from server.formats.call_parser import CallParser
from server.formats.parts import AnswerText, ToolCallArguments, ToolCallStart
from server.formats.reasoning import TAGS, ReasoningParser, Thinking
from server.formats.registry import FORMATS, format_named, recognise_format
from server.formats.tool_format import ToolFormat
from server.formats.tools import Tool, UnusableSchema
from tests.reference.schemas import byte_vocabulary, random_answer
from tests.server.formats.answers import cut, parts_of

_VALUE = st.one_of(
    st.sampled_from([
        {"type": "string"}, {"type": "string", "maxLength": 4}, {"enum": ["C", "F"]}, {"type": "integer", "minimum": 3},
        {"type": "boolean"}, {"type": "null"}, {"anyOf": [{"type": "string"}, {"type": "null"}]}, {},
        {"type": "array", "items": {"type": "integer"}, "maxItems": 2}, {"const": "x y"}, {"$ref": "#/$defs/d"},
        {"type": "string", "format": "date"}, {"type": ["integer", "null"]}, {"enum": ["1", 2, None]},
        {"type": "object", "properties": {"k": {"type": "boolean"}}, "required": ["k"]},
    ])
)  # fmt: skip


@st.composite
def schemas(draw: st.DrawFn) -> dict[str, Any]:
    """Schemas of arguments as people write them."""
    properties = draw(st.dictionaries(st.sampled_from(["a", "place", "n_1", "x-y", "long name"]), _VALUE, max_size=3))
    required = [name for name in properties if draw(st.booleans())]
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return schema | {"$defs": {"d": {"type": "integer", "maximum": 9}}}


def spell(text: str) -> Node:
    return Exact(text)


def parser(form: ToolFormat, tools: dict[str, Tool], *, as_it_comes: bool = False) -> CallParser:
    numbers = itertools.count()
    return CallParser(form, tools, lambda: f"id{next(numbers)}", as_it_comes=as_it_comes)


EXAMPLES: dict[str, ToolFormat] = {
    **{name: kind() for name, kind in FORMATS.items()},
    "mistral list": format_named("mistral", '[TOOL_CALLS] [{"name": "look", "arguments": {"place": "x"}}]'),
    "hermes on one line": format_named("hermes", '<tool_call>{"name": "look", "arguments": {}}</tool_call>'),
}


@pytest.mark.parametrize("name", EXAMPLES)
@given(st.lists(schemas(), min_size=1, max_size=2), st.integers(0, 10**6))
@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
def test_a_call_that_a_grammar_held_is_valid(name: str, parameters: list[dict[str, Any]], seed: int) -> None:
    form = EXAMPLES[name]
    tools = {f"tool_{number}": Tool(f"tool_{number}", schema) for number, schema in enumerate(parameters)}
    compiled = compile_grammar(byte_vocabulary(), structure_grammar(form.calls(list(tools.values()), True, spell)))
    answer = random_answer(compiled, seed, steps=400)
    assume(answer.is_whole)
    parts = parts_of(parser(form, tools), answer.text)
    calls = [part for part in parts if isinstance(part, ToolCallStart)]
    texts = [part.text for part in parts if isinstance(part, ToolCallArguments)]
    assert len(parts) == 2 * len(calls) >= 2, answer.text
    pieces = cut(answer.text, random.Random(seed).choices(range(9), k=len(answer.text) // 5))
    assert parts_of(parser(form, tools, as_it_comes=True), pieces) == parts, answer.text
    for start, text in zip(calls, texts, strict=True):
        assert jsonschema_rs.is_valid(tools[start.name].parameters, json.loads(text)), answer.text


@pytest.mark.parametrize("name", EXAMPLES)
def test_any_text_may_stand_where_no_tool_has_to_be_called(name: str) -> None:
    """A tool that is offered must not change what the model says when it calls none."""
    form, tool = EXAMPLES[name], Tool("f", {"type": "object", "properties": {"a": {"type": "integer"}}})
    compiled = compile_grammar(byte_vocabulary(), structure_grammar(form.calls_or(None, [tool], True, spell)))

    def allows(text: str, *, whole: bool = True) -> bool:
        matcher, tokenizer = compiled.matcher.deep_copy(), compiled.vocabulary.tokenizer
        tokens = [tokenizer.greedy_tokenize(char)[0] for char in text]
        return matcher.try_consume_tokens(tokens) == len(tokens) and (matcher.is_accepting() or not whole)

    assert all(map(allows, ["", "Yes.", "a <tool", "1 [x] {y}", "\n\n"]))
    opening = form.openings[0]
    if form.only_first:
        begun = {"llama3_json": '{"name": "', "pythonic": "[f("}[name]
        assert allows(begun, whole=False)
        assert not allows(begun + "zz", whole=False)
    else:
        assert allows(f"I look. {opening}", whole=False)
        assert not allows(f"I look. {opening} zz", whole=False)
        assert not allows(f"I look. {opening}")


def test_a_marker_that_is_a_control_token_is_written_as_one() -> None:
    """Spelled out in letters it is nothing that the model was trained on."""
    node = FORMATS["mistral"]().calls_or(None, [Tool("f", {"type": "object"})], True, lambda text: Token(0))
    assert compile_grammar(byte_vocabulary(), structure_grammar(node))


@pytest.mark.parametrize("thinking", [Thinking.OPEN, Thinking.UNSAID])
def test_a_grammar_binds_once_the_reasoning_is_over(thinking: Thinking) -> None:
    """The reasoning would have to be JSON, or the answer could be anything."""
    answer = Inner(Grammar(kind="choice", source='["yes", "no"]'))
    node = TAGS["think"].before(answer, thinking, spell)
    compiled = compile_grammar(byte_vocabulary(), structure_grammar(node))
    for seed in range(20):
        made = random_answer(compiled, seed, steps=300)
        if made.is_whole:
            parts = parts_of(ReasoningParser(TAGS["think"], thinking, parser(EXAMPLES["hermes"], {})), made.text)
            assert parts[-1] in (AnswerText("yes"), AnswerText("no")), made.text


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, {"type": "string"}, {"$ref": "#/x"},
        {"type": "object", "properties": {"a>b": {}}}, {"properties": {"a": {"$ref": "#/properties/b"}}},
    ],
)  # fmt: skip
def test_a_schema_that_lists_no_arguments_is_refused_where_they_are_written_one_by_one(schema: dict[str, Any]) -> None:
    with pytest.raises(UnusableSchema):
        FORMATS["qwen3_coder"]().calls([Tool("f", schema)], True, spell)


def test_a_schema_within_a_structure_is_refused_in_words_of_its_own() -> None:
    node = Inner(Grammar(kind="json_schema", source='{"not": {}}'))
    with pytest.raises(RequestError, match="'not' is not supported"):
        compile_grammar(byte_vocabulary(), structure_grammar(node))


@pytest.mark.parametrize(
    ("example", "name"),
    [
        ("<tool_call>\n<function=look>\n<parameter=place>\nx\n</parameter>", "qwen3_coder"),
        ('<tool_call>\n{"name": "look", "arguments": {"place": "x"}}\n</tool_call>', "hermes"),
        ('[TOOL_CALLS]look[ARGS]{"place": "x"}', "mistral"),
        ('[TOOL_CALLS] [{"name": "look", "arguments": {"place": "x"}}]', "mistral"),
        ('{"name": "look", "parameters": {"place": "x"}}', "llama3_json"),
        ('[look(place="x")]', "pythonic"),
        ("look at x", None),
    ],
)
def test_the_format_is_the_one_that_the_template_writes(example: str, name: str | None) -> None:
    found = recognise_format(f"<|user|>x<|assistant|>{example}<|end|>")
    assert (None if found is None else found.name) == name
