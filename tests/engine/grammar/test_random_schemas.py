"""Answers drawn at random from the grammars of schemas drawn at random: valid, and never without a way on.

If one fails, a validator refuses what the server calls structured, or a request fails in the middle of its answer.
"""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import RequestError
from engine.grammar.worker import judge
from tests.reference.grammars import regex, schema, vocabulary, write_text_checkpoint
from tests.reference.schemas import REPEATED, accepts, compile_schema, random_answer, schemas


@REPEATED
@given(schemas(), st.integers(0, 1000))
def test_random_answers_of_random_schemas_are_valid(schema: dict[str, Any], seed: int) -> None:
    """A validator would refuse what the server calls structured, or a request fail in the middle of its answer."""
    try:
        compiled = compile_schema(schema)
    except RequestError:
        return
    try:
        validator = jsonschema_rs.validator_for(schema)
    except (jsonschema_rs.ValidationError, ValueError):
        return  # not a schema by the letter; it was read generously
    for number in range(3):
        answer = random_answer(compiled, seed + number)
        if answer.is_whole and "Infinity" not in json.dumps(value := json.loads(answer.text)):
            assert validator.is_valid(value), answer.text


def test_a_free_name_is_never_a_listed_one_in_disguise() -> None:
    """`"\\u0061"` is `"a"`: it would have the value of a free property, against the schema."""
    for wanted in (
        {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "integer"}},
        {
            "type": "object",
            "patternProperties": {"^a": {"type": "string"}},
            "additionalProperties": {"type": "integer"},
        },
    ):
        assert accepts(wanted, '{"b": 1, "a1": "x"}') or accepts(wanted, '{"a": "x", "b": 1}')
        assert not accepts(wanted, '{"\\u0061": 1}')


@REPEATED
@given(st.one_of(st.integers(-(2**70), 2**70), st.floats(-1e30, 1e30), st.decimals(-999, 999, places=6)))
def test_a_constant_is_itself_or_refused(number: Any) -> None:
    """A constant would be another number than the one in the schema."""
    text = str(number)
    try:
        compiled = compile_schema(f'{{"const": {text}}}')
    except RequestError:
        assert abs(float(text)) >= 2**53 or len(text) > 15 or "e" in text
        return
    answer = random_answer(compiled, 0, steps=400)
    assert answer.is_whole
    assert Decimal(answer.text) == Decimal(text)


@pytest.mark.parametrize("compact", [False, True])
def test_white_space_is_one_space_at_most(compact: bool) -> None:
    """A model would spend its budget on blanks and never finish its object."""
    for text in ('{"a": 1, "b": [1, 2]}', '{ "a":1}', '{"a":1 }', '{"a" :1}', '{ "a" : [ 1 , 2 ] }'):
        assert accepts({"type": "object"}, text, compact=compact) is not compact, text
    assert accepts({"type": "object"}, '{"a":1,"b":[1,2]}', compact=compact)
    for text in ('{"a":  1}', '{  "a":1}', '{"a":1  }', '{"a":1}\n', '{\n"a":1}', ' {"a":1}', '{"a":\n1}', '{"a":1\t}'):
        assert not accepts({"type": "object"}, text, compact=compact), text


def test_a_way_into_a_dead_end_is_refused_beforehand(tmp_path: Path) -> None:
    """A request would fail in the middle of its answer."""
    known = vocabulary(write_text_checkpoint(tmp_path / "text"))  # it cannot write "é"
    for grammar in (regex("[ab]{5}é"), schema({"const": "aé"})):
        assert "no token" in (judge(known, grammar) or "")
    assert judge(known, regex("[ab]{5}")) is None


def test_a_property_may_be_called_limit() -> None:
    """The refusal would speak of the library's limits."""
    wanted = {"type": "object", "properties": {"limit": False}, "required": ["limit"]}
    with pytest.raises(RequestError, match="'limit'"):
        compile_schema(wanted)
