"""The keywords of JSON Schema: which are enforced, which only describe, and which are refused unless they ask nothing.

A keyword in none of the tables is an annotation, as JSON Schema says of keywords that nobody knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.errors import RequestError
from engine.grammar.json_schema.numbers import Number, as_integer, is_number

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
ENFORCED_FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
)
"""The formats that the grammar library enforces. JSON Schema lets any other be an annotation."""
COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
OLD_DRAFTS = ("draft-04", "draft-06", "draft-07")
"""Drafts in which `$ref` stands alone: what is beside it counts for nothing."""
LIST_ITEMS_DRAFTS = (*OLD_DRAFTS, "draft/2019-09")
"""Drafts that know no `prefixItems`."""
DRAFTS = (*LIST_ITEMS_DRAFTS, "draft/2020-12")

_Schema = dict[str, Any]


def _allows_all(value: Any) -> bool:
    return value is True or value == {}


REFUSED: dict[str, Callable[[Any, _Schema], bool]] = {
    "not": lambda value, _: value is False,
    "if": lambda _, schema: "then" not in schema and "else" not in schema,
    "then": lambda value, schema: "if" not in schema or _allows_all(value),
    "else": lambda value, schema: "if" not in schema or _allows_all(value),
    "contains": lambda value, schema: schema.get("minContains") == 0 and "maxContains" not in schema,
    "uniqueItems": lambda value, _: value is False,
    "propertyNames": lambda value, _: _allows_all(value),
    "dependentRequired": lambda value, _: isinstance(value, dict) and not any(value.values()),
    "dependentSchemas": lambda value, _: isinstance(value, dict) and all(map(_allows_all, value.values())),
    "dependencies": lambda value, _: value == {},
    "$dynamicRef": lambda value, _: False,
    "$recursiveRef": lambda value, _: False,
    "extends": lambda value, _: value in ({}, []),
    "disallow": lambda value, _: value == [],
    "divisibleBy": lambda value, _: False,
}
"""Keywords that cannot be enforced. The function tells whether one asks for nothing: (its value, the whole schema)."""


def unusable(reason: str) -> RequestError:
    """The error for a schema that cannot be used. reason: ends the sentence, without a full stop."""
    return RequestError(f"The JSON schema cannot be used: {reason[:200]}.", "grammar", "invalid_grammar")


def check_refused(keyword: str, value: Any, schema: _Schema) -> None:
    """Raises RequestError for a keyword of the table above, unless it asks for nothing."""
    if not REFUSED[keyword](value, schema):
        raise unusable(f"'{keyword}' is not supported")


def draft_of(schema: _Schema) -> str:
    """The draft that a whole schema names in `$schema`; the newest where it names none. Raises RequestError."""
    name = schema.get("$schema", "")
    if not isinstance(name, str):
        raise unusable("'$schema' must be a string")
    draft = name.partition("//json-schema.org/")[2].rstrip("#").removesuffix("/schema")
    if not name or draft == "schema":
        return DRAFTS[-1]
    if draft not in DRAFTS:
        raise unusable(f"'$schema' names an unknown draft, {_shown(name)}")
    return draft


def read_count(keyword: str, value: Any) -> int:
    """A length or a number of items. Raises RequestError."""
    count = as_integer(value) if is_number(value) else None
    if count is None or not 0 <= count < 2**31:
        raise unusable(f"'{keyword}' must be a whole number from 0 to {2**31 - 1}, not {_shown(value)}")
    return count


def read_number(keyword: str, value: Any) -> Number:
    """Raises RequestError."""
    if not is_number(value):
        raise unusable(f"'{keyword}' must be a number, not {_shown(value)}")
    number: Number = value
    return number


def read_text(keyword: str, value: Any) -> str:
    """Raises RequestError."""
    if not isinstance(value, str):
        raise unusable(f"'{keyword}' must be a string, not {_shown(value)}")
    return value


def ends_with_lone_backslash(text: str) -> bool:
    """Whether the last character of a regular expression escapes nothing."""
    return (len(text) - len(text.rstrip("\\"))) % 2 == 1


def read_expression(keyword: str, value: Any) -> str:
    """A regular expression. Raises RequestError for what the library would take for another one."""
    text = read_text(keyword, value)
    if ends_with_lone_backslash(text):
        raise unusable(f"'{keyword}' ends with a lone backslash")
    return text


def read_types(value: Any) -> list[str]:
    """The types that `type` names. Raises RequestError."""
    types = value if isinstance(value, list) else [value]
    for name in types:
        if not isinstance(name, str) or name not in TYPES:
            raise unusable(f"'type' must be one of {', '.join(TYPES)}, or a list of them, not {_shown(name)}")
    if not types:
        raise unusable("'type' must name at least one type")
    return list(dict.fromkeys(types))


def read_names(keyword: str, value: Any) -> list[str]:
    """A list of property names. Raises RequestError."""
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise unusable(f"'{keyword}' must be a list of strings")
    return list(dict.fromkeys(value))


def read_list(keyword: str, value: Any, *, least: int = 1) -> list[Any]:
    """Raises RequestError."""
    if not isinstance(value, list) or len(value) < least:
        raise unusable(f"'{keyword}' must be a list" + (f" of at least {least}" if least else ""))
    return value


def read_object(keyword: str, value: Any) -> _Schema:
    """Raises RequestError."""
    if not isinstance(value, dict):
        raise unusable(f"'{keyword}' must be an object, not {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
