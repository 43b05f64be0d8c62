"""JSON answers of the built-in model come to their end: closed objects, no blanks, formats as annotations, end tokens.

If one fails, an answer is used up by white space or by properties nobody asked for, and is no JSON.
"""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema_rs
import pytest

from engine.request import Grammar
from tests.conftest import MakeEngine
from tests.engine.driving import Answer, ask, drive
from tests.reference.grammars import schema
from tests.reference.prompts import builtin_tokenizer, prompt_ids

SENTENCE = "Turn this into JSON: Anna is a pilot from Oslo, 58 years old."
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "home": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]},
    },
    "required": ["name", "age", "home"],
}
"""Open by the letter: nothing is said about other properties."""
WITH_FORMATS = {
    "type": "object",
    "properties": {name: {"type": "string", "format": name, "maxLength": 8} for name in ("password", "binary", "byte")},
    "required": ["password", "binary", "byte"],
}


def answers(make: MakeEngine, grammar: Grammar, prompts: list[list[int]], **fields: Any) -> list[Answer]:
    fields = {"max_tokens": 100} | fields
    requests = [ask(f"{i}", ids, "auto", grammar=grammar, seed=i, **fields) for i, ids in enumerate(prompts)]
    done = drive(make(), requests)
    return [done[request.request_id] for request in requests]


def text_of(answer: Answer) -> str:
    return builtin_tokenizer().decode(answer.tokens)


@pytest.mark.parametrize("wanted", [PERSON, WITH_FORMATS], ids=["open by the letter", "formats"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_end_with_what_was_asked_for(builtin_engine: MakeEngine, wanted: Any, temperature: float) -> None:
    """An object would get property after property until the tokens are used up."""
    for answer in answers(builtin_engine, schema(wanted), prompt_ids()[:4], temperature=temperature):
        value = json.loads(text_of(answer))
        assert answer.finished.reason == "stop"
        assert set(value) == set(wanted["properties"])
        assert jsonschema_rs.is_valid(wanted, value)


def test_little_of_an_answer_is_white_space(builtin_engine: MakeEngine) -> None:
    """55 of 64 tokens were blanks once. The model keeps its own spelling, or its answers would be other ones."""
    text = {"type": "string"}
    form = {"name": text, "age": {"type": "integer"}, "city": text, "job": text}
    wanted = schema({"type": "object", "properties": form, "required": list(form)})
    ids = builtin_tokenizer().encode(f"<|bos|><|user|>{SENTENCE}<|assistant|>", add_special_tokens=False).ids
    (answer,) = answers(builtin_engine, wanted, [ids], temperature=0.0)
    assert text_of(answer) == '{"name": "Anna", "age": 58, "city": "Oslo", "job": "pilot"}'
    for answer in answers(
        builtin_engine, Grammar(kind="json_object"), prompt_ids()[:6], temperature=1.0, max_tokens=64
    ):
        assert "\n" not in text_of(answer)
    compact = Grammar(kind="json_schema", source=wanted.source, compact=True)
    (answer,) = answers(builtin_engine, compact, [ids], temperature=0.0)
    assert answer.finished.reason == "stop"
    assert text_of(answer) == json.dumps(json.loads(text_of(answer)), separators=(",", ":"))


@pytest.mark.parametrize(
    "fields",
    [
        {"repetition_penalty": 10.0, "presence_penalty": 2.0, "frequency_penalty": 2.0},
        {"repetition_penalty": 0.01, "presence_penalty": -2.0, "frequency_penalty": -2.0},
        {"logit_bias": dict.fromkeys(range(10, 1010), -100.0)},
        {"logit_bias": {2: 100.0}},
        {"min_tokens": 90},
        {"ignore_eos": True},
        {"temperature": 2.0, "top_k": 1},
    ],
    ids=lambda fields: ", ".join(fields),
)
def test_no_parameter_breaks_the_form(builtin_engine: MakeEngine, fields: dict[str, Any]) -> None:
    """A parameter that pulls the other way would bring in a token that the schema forbids, or an error."""
    wanted = {
        "type": "object",
        "properties": {"n": {"enum": [12, 345]}, "s": {"enum": ["ab", "cd"]}},
        "required": ["n", "s"],
    }
    for answer in answers(builtin_engine, schema(wanted), prompt_ids()[:3], **fields):
        assert answer.finished.reason == "stop"
        assert jsonschema_rs.is_valid(wanted, json.loads(text_of(answer)))


def test_an_unbounded_number_comes_to_its_end(builtin_engine: MakeEngine) -> None:
    """Without white space before a bracket, a model that never writes the bare bracket goes on with digits for ever."""
    wanted = schema({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})
    with_numbers = [ids for ids in prompt_ids()[:16] if re.search(r"\d", builtin_tokenizer().decode(ids))]
    assert len(with_numbers) >= 10
    found = answers(builtin_engine, wanted, with_numbers, temperature=0.0, max_tokens=64)
    assert [answer.finished.reason for answer in found] == ["stop"] * len(with_numbers)
