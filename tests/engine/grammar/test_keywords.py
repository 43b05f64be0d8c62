"""Every keyword of JSON Schema is enforced or refused by its name, before any work; numbers are exact or refused.

If one fails, an answer breaks the schema it was asked for, or keeps to another number than the schema names.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine.errors import RequestError
from engine.grammar.json_schema.library import library_schema
from tests.reference.schemas import OBJECT, TREE, accepts, compile_schema


def refusal(schema: Any) -> str:
    with pytest.raises(RequestError) as refused:
        compile_schema(schema)
    assert refused.value.code == "invalid_grammar"
    return str(refused.value)


KEYWORDS: list[tuple[str, dict[str, Any], list[Any], list[Any]]] = [
    ("type", {"type": "integer"}, [0, -5, 12], [1.5, "1", None]),
    ("types", {"type": ["string", "null"]}, ["x", None], [1, True]),
    ("enum", {"enum": ["red", 2, None, {"a": [1]}]}, ["red", 2, None, {"a": [1]}], ["blue", 3, {}]),
    ("enum within limits", {"enum": [1, 2, 3, "abc"], "multipleOf": 2, "maxLength": 2}, [2], [1, 3, "abc"]),
    ("const", {"const": 0.1}, [0.1], [0.2, 1]),
    ("const of many digits", {"const": 2**60}, [2**60], [2**60 + 256]),
    ("minimum", {"type": "integer", "minimum": -3, "maximum": 12}, [-3, 0, 12], [-4, 13]),
    ("64 bits", {"type": "integer", "minimum": 5, "maximum": 2**63 - 1}, [5, 2**63 - 1], [4, 2**63]),
    ("exclusive", {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, [0.5], [0, 1, 2]),
    ("multipleOf", {"type": "number", "multipleOf": 0.01}, [0.25, 3], [0.125]),
    ("length", {"type": "string", "minLength": 2.0, "maxLength": 3}, ["ab", "abc"], ["a", "abcd"]),
    ("pattern", {"type": "string", "pattern": "^[a-z]+\\d$"}, ["ab1"], ["ab", "1"]),
    ("format", {"type": "string", "format": "date"}, ["2024-02-29"], ["2024-13-01", "x"]),
    ("format of nobody", {"type": "string", "format": "password"}, ["x", ""], [1]),
    ("properties", OBJECT, [{"a": 1}], [{}, {"a": "x"}]),
    ("patternProperties", {"type": "object", "patternProperties": {"^x": {"type": "integer"}},
                           "additionalProperties": False}, [{}, {"x1": 2}], [{"y": 1}, {"x1": "a"}]),
    ("additionalProperties", {"type": "object", "additionalProperties": {"type": "integer"}},
     [{}, {"q": 1}], [{"q": ""}]),
    ("minProperties", {"type": "object", "minProperties": 1, "maxProperties": 1}, [{"q": 1}], [{}, {"q": 1, "r": 2}]),
    ("items", {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2},
     [[1], [1, 2]], [[], ["a"]]),
    ("prefixItems", {"type": "array", "prefixItems": [{"const": 1}], "items": False, "minItems": 1},
     [[1]], [[2], [1, 1]]),
    ("unevaluatedItems", {"type": "array", "prefixItems": [{"const": 1}], "unevaluatedItems": False}, [[1]], [[1, 2]]),
    ("unevaluatedProperties", OBJECT | {"unevaluatedProperties": {"type": "null"}},
     [{"a": 1, "q": None}], [{"a": 1, "q": 2}]),
    ("unevaluated beside allOf", {"allOf": [OBJECT], "type": "object", "properties": {"b": {}},
                                  "unevaluatedProperties": False},
     [{"a": 1}, {"a": 1, "b": 2}], [{"b": 1}, {"a": 1, "c": 2}]),
    ("anyOf", {"anyOf": [{"type": "integer"}, {"const": "x"}]}, [1, "x"], ["y"]),
    ("oneOf", {"oneOf": [{"type": "integer"}, {"type": "string"}]}, [1, "x"], [None]),
    ("oneOf of references", {"oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}], "$defs": {
        name: {"type": "object", "properties": {"kind": {"const": name}}, "required": ["kind"]} for name in "ab"}},
     [{"kind": "a"}, {"kind": "b"}], [{"kind": "c"}, {}]),
    ("allOf", {"allOf": [{"type": "integer"}, {"minimum": 3}, {"maximum": 5}]}, [3, 5], [2, 6]),
    ("$ref", {"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "integer"}}}, [1], ["x"]),
    ("$ref to the whole", TREE, [{"v": 1}, {"v": 1, "next": {"v": 2}}], [{"next": {"v": 1}}]),
    ("an older draft", {"$schema": "http://json-schema.org/draft-07/schema#", "type": "array",
                        "items": [{"const": 1}], "additionalItems": False}, [[], [1]], [[2], [1, 1]]),
    ("the fourth draft", {"$schema": "http://json-schema.org/draft-04/schema#", "type": "integer", "minimum": 3,
                          "exclusiveMinimum": True}, [4], [3]),
    ("annotations", {"type": "integer", "title": "t", "deprecated": True, "x-order": 3, "nullable": False,
                     "discriminator": {}, "examples": [1e-400]}, [1], ["x"]),
    ("what asks for nothing", {"type": "array", "uniqueItems": False, "not": False, "dependentRequired": {},
                               "propertyNames": True, "then": {"minItems": 3}, "unevaluatedItems": True},
     [[], [1]], [1]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "right", "wrong"), [case[1:] for case in KEYWORDS], ids=[case[0] for case in KEYWORDS]
)
def test_each_keyword_is_enforced(schema: dict[str, Any], right: list[Any], wrong: list[Any]) -> None:
    """A keyword would be accepted and then mean nothing, or something else than it means to validators."""
    for value in right:
        assert accepts(schema, json.dumps(value)), value
        assert accepts(schema, json.dumps(value, separators=(",", ":"))), value
    for value in wrong:
        assert not accepts(schema, json.dumps(value)), value


@pytest.mark.parametrize(
    ("schema", "part"),
    [
        ({"not": {"type": "string"}}, "'not'"),
        ({"if": {"type": "string"}, "then": {"minLength": 2}}, "'if'"),
        ({"type": "array", "contains": {"const": 1}}, "'contains'"),
        ({"type": "array", "uniqueItems": True}, "'uniqueItems'"),
        ({"propertyNames": {"pattern": "^a"}}, "'propertyNames'"),
        ({"dependentRequired": {"a": ["b"]}}, "'dependentRequired'"),
        ({"dependentSchemas": {"a": {"minProperties": 2}}}, "'dependentSchemas'"),
        ({"dependencies": {"a": ["b"]}}, "'dependencies'"),
        ({"$dynamicRef": "#node"}, "'$dynamicRef'"),
        ({"anyOf": [OBJECT], "unevaluatedProperties": False}, "'unevaluatedProperties'"),
        ({"allOf": [{"prefixItems": [{}]}], "unevaluatedItems": False}, "'unevaluatedItems'"),
        ({"oneOf": [{"type": "integer"}, {"minimum": 2}]}, "'oneOf'"),
        ({"type": "object", "patternProperties": {"^a": {}, "b$": {}}}, "'patternProperties'"),
        ({"type": "object", "minProperties": 2}, "'minProperties'"),
        ({"type": "string", "pattern": "a(?=b)"}, "'pattern'"),
        ({"type": "string", "pattern": "a$b"}, "'pattern'"),
        ({"type": "string", "pattern": "("}, "'pattern' '('"),
        ({"type": "string", "pattern": "a\\"}, "'pattern'"),
        ({"type": "string", "pattern": "^a$", "minLength": 2}, "'pattern'"),
        ({"$ref": "#/$defs/x"}, "'$ref'"),
        ({"$ref": "https://example.com/x"}, "example.com"),
        ({"$ref": "#name", "$defs": {"x": {"$anchor": "name"}}}, "'$ref'"),
        ({"$schema": "https://example.com/schema"}, "'$schema'"),
        ({"type": "strin"}, "'strin'"),
        ({"type": []}, "'type'"),
        ({"enum": []}, "'enum'"),
        ({"enum": "a"}, "'enum'"),
        ({"required": "a"}, "'required'"),
        ({"properties": []}, "'properties'"),
        ({"minLength": -1}, "'minLength'"),
        ({"minItems": 1.5}, "'minItems'"),
        ({"minimum": "3"}, "'minimum'"),
        ({"multipleOf": 0}, "'multipleOf'"),
        ({"allOf": []}, "'allOf'"),
        ({"items": 3}, "a schema must be"),
        ({"type": "integer", "minimum": 1, "maximum": 2, "multipleOf": 5}, "no value"),
        ({"const": 3, "multipleOf": 2}, "no value"),
        (TREE | {"required": ["next"]}, "without end"),
        ({"allOf": [{"type": "integer", "multipleOf": 99999}, {"multipleOf": 99998}]}, "'multipleOf'"),
    ],
)  # fmt: skip
def test_what_cannot_be_enforced_is_refused_by_name(schema: dict[str, Any], part: str) -> None:
    """A client would get an answer that breaks its schema, an error in the middle of one, or a riddle."""
    for place in (schema, {"type": "object", "properties": {"inner": schema}, "required": ["inner"]}):
        if not {"$ref", "$schema"} & schema.keys() and schema.get("properties") != TREE["properties"]:
            refusal(place)  # a reference means something else, and an inner '$schema' nothing, in another place
    message = refusal(schema)
    assert part in message
    assert "\n" not in message
    assert len(message) < 300


NUMBERS = [
    '{"const": %s}', '{"enum": [1, {"a": [%s]}]}', '{"type": "number", "minimum": %s}', '{"maximum": %s}',
    '{"exclusiveMaximum": %s}', '{"type": "integer", "exclusiveMinimum": %s}', '{"type": "number", "multipleOf": %s}',
]  # fmt: skip


@pytest.mark.parametrize("schema", NUMBERS)
@pytest.mark.parametrize(
    "number",
    ["9007199254740993", "18446744073709551615", "-9007199254740993", "1e400", "1e-400", "0.1000000000000000000001",
     "1" + "0" * 400, "3.14159265358979323846", "123456789012345680001", "1e999999999999999999999", "1e300"],
)  # fmt: skip
def test_a_number_that_would_be_rounded_is_refused(schema: str, number: str) -> None:
    """The answer would keep to another number than the schema names, one that is off by one, say."""
    with pytest.raises(RequestError, match=r"number|greater than 0"):
        library_schema(schema % number, compact=False)


@pytest.mark.parametrize("number", [10**22, 2**63, 2**53 + 1, -(2**63)])
def test_a_large_constant_is_not_another_integer(number: int) -> None:
    """Beside `type: integer` of another schema the library would take it for the largest integer it knows."""
    for keyword in ("const", "exclusiveMinimum", "exclusiveMaximum"):
        assert str(number)[:9] in refusal({"type": "integer", "allOf": [{keyword: number}]}).replace("E+", "e+")
