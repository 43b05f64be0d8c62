"""Objects that list their properties have no others unless the schema says so, and no schema loses its last answer.

If one fails, an answer goes on with names of its own until its tokens are used up, or a good schema is refused.
"""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given

from engine.errors import RequestError
from engine.grammar.compiler import _matcher
from engine.grammar.json_schema.library import library_schema
from tests.reference.schemas import OBJECT, REPEATED, TREE, accepts, byte_vocabulary, schemas

NESTED = {"type": "object", "properties": {"in": OBJECT}, "required": ["in"]}
BASE = {"type": "object", "properties": {"k": {"type": "integer"}}, "required": ["k"]}
MERGED = {"allOf": [{"$ref": "#/$defs/base"}, {"properties": {"m": OBJECT}}], "$defs": {"base": BASE}}
CHOICE = BASE | {"anyOf": [OBJECT, {"properties": {"b": {"type": "null"}}, "required": ["b"]}]}


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        (OBJECT, [{"a": 1}], [{"a": 1, "q": 2}]),
        ({"type": "object"}, [{}, {"q": 1}], []),
        ({"type": "object", "properties": {}}, [{}, {"q": 1}], []),
        (OBJECT | {"additionalProperties": True}, [{"a": 1, "q": 2}], []),
        (OBJECT | {"additionalProperties": {}}, [{"a": 1, "q": 2}], []),
        (OBJECT | {"unevaluatedProperties": True}, [{"a": 1, "q": 2}], []),
        (OBJECT | {"required": ["a", "z"]}, [{"a": 1, "z": "free"}], [{"a": 1}, {"a": 1, "z": 1, "q": 2}]),
        (OBJECT | {"patternProperties": {"^x": {"type": "integer"}}}, [{"a": 1, "x1": 2}], [{"a": 1, "q": 2}]),
        (NESTED, [{"in": {"a": 1}}], [{"in": {"a": 1, "q": 2}}]),
        ({"type": "array", "items": OBJECT}, [[{"a": 1}]], [[{"a": 1, "q": 2}]]),
        ({"type": "object", "additionalProperties": OBJECT}, [{"q": {"a": 1}}], [{"q": {"a": 1, "q": 2}}]),
        ({"type": "object", "patternProperties": {"^x": OBJECT}}, [{"x": {"a": 1}}], [{"x": {"a": 1, "q": 2}}]),
        ({"anyOf": [OBJECT, {"type": "null"}]}, [{"a": 1}, None], [{"a": 1, "q": 2}]),
        ({"allOf": [OBJECT]}, [{"a": 1}], [{"a": 1, "q": 2}]),
        ({"$ref": "#/$defs/d", "$defs": {"d": OBJECT}}, [{"a": 1}], [{"a": 1, "q": 2}]),
        ({"$ref": "#/$defs/d", "description": "d", "$defs": {"d": OBJECT}}, [{"a": 1}], [{"a": 1, "q": 2}]),
        (MERGED, [{"k": 1}, {"k": 1, "m": {"a": 1}}], [{"k": 1, "q": 2}, {"k": 1, "m": {"a": 1, "q": 2}}]),
        (CHOICE, [{"k": 1, "a": 1}, {"k": 1, "b": None}], [{"k": 1, "a": 1, "b": None}, {"k": 1, "a": 1, "q": 2}]),
        ({"allOf": [OBJECT, BASE | {"additionalProperties": True}]}, [{"a": 1, "k": 1, "q": 2}], []),
        (OBJECT | {"const": {"a": 1, "q": 2}}, [{"a": 1, "q": 2}], [{"a": 1}]),
        (OBJECT | {"minProperties": 2}, [{"a": 1, "q": 2}], [{"a": 1}]),
        (TREE, [{"v": 1, "next": {"v": 2}}], [{"v": 1, "next": {"v": 2, "q": 3}}]),
    ],
)  # fmt: skip
def test_objects_that_list_their_properties_have_no_others(schema: Any, right: list[Any], wrong: list[Any]) -> None:
    """An answer would go on with names of its own until its tokens are used up; or one asked to be open be closed."""
    for value in right:
        assert jsonschema_rs.is_valid(schema, value)
        assert accepts(schema, json.dumps(value)), value
    for value in wrong:
        assert not accepts(schema, json.dumps(value)), value


@REPEATED
@given(schemas())
def test_closing_leaves_what_can_be_satisfied_satisfiable(schema: dict[str, Any]) -> None:
    """A schema that has answers would be refused, or a property in it never be written."""
    try:
        forms = library_schema(json.dumps(schema), compact=False)
    except RequestError:
        return
    if not _matcher(byte_vocabulary(), f"%json {forms.opened}").is_error():
        assert not _matcher(byte_vocabulary(), f"%json {forms.closed}").is_error()
