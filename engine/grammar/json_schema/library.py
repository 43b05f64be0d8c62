"""From the text of a JSON schema to the texts that the grammar library compiles."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from engine.errors import RequestError
from engine.grammar.json_schema.closing import SchemaCloser, TooManySchemas
from engine.grammar.json_schema.endless import without_endless
from engine.grammar.json_schema.keywords import unusable
from engine.grammar.json_schema.nodes import all_nodes
from engine.grammar.json_schema.numbers import read_exact
from engine.grammar.json_schema.reader import SchemaReader

WHITESPACE = r"\x20"
"""White space between two JSON tokens: one space at most. A model that would go on with blanks has to go on with JSON.
Spaces before closing brackets are not necessary, but they let a model end a number of which it would never write the
bracket next."""
ESCAPES = 'nrbtf\\"'
"""Characters behind a backslash in strings, without `\\u`."""


@dataclass(frozen=True)
class LibrarySchema:
    """One schema in the library's form, as JSON."""

    closed: str
    """Objects that list their properties have no others, unless the schema says so."""
    opened: str
    """The same schema with objects open unless it closes them: for one that is of no use closed."""
    needs_both: bool
    """The closed form is right only if the library accepts the open one too: there are options of which exactly one
    may match, and closing could make them look more different than they are."""


def library_schema(source: str, *, compact: bool) -> LibrarySchema:
    """Reads a JSON schema. compact: no white space at all, else a space at most between two tokens.

    Raises RequestError that says in one line why the schema cannot be used.
    """
    try:
        return _translate(_read(source), compact)
    except RecursionError:
        raise unusable("it is nested too deeply") from None


def any_object(*, compact: bool) -> str:
    """The library's form of "any JSON object"."""
    return _text({"type": "object"}, compact)


def _read(source: str) -> dict[str, Any]:
    try:
        value = read_exact(source)
    except RecursionError:
        value = None
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError):
            value = None
        else:
            raise unusable(str(error)) from None
    if not isinstance(value, dict):
        raise RequestError("The JSON schema must be a JSON object.", "grammar", "invalid_grammar")
    return value


def _translate(source: dict[str, Any], compact: bool) -> LibrarySchema:
    document = without_endless(SchemaReader(source).read())
    try:
        opened = SchemaCloser(document).write(closed=False)
        closed = SchemaCloser(document).write(closed=True)
    except TooManySchemas:
        raise unusable("it is too large or too complex") from None
    return LibrarySchema(_text(closed, compact), _text(opened, compact), any("oneOf" in n for n in _nodes(opened)))


def _nodes(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [node for definition in schema.get("$defs", {}).values() for node in all_nodes(definition)]


def _text(schema: dict[str, Any], compact: bool) -> str:
    options: dict[str, Any] = {"whitespace_flexible": False} if compact else {"whitespace_pattern": WHITESPACE}
    if any(map(_mixes_names, _nodes(schema))):
        # A free name must not be a listed one in disguise: "\\u0061" is "a".
        options["json_allowed_escapes"] = ESCAPES
    return json.dumps(schema | {"x-guidance": options})


def _mixes_names(node: dict[str, Any]) -> bool:
    """Whether some names of an object have schemas of their own and others are free."""
    named = any(node.get(keyword) for keyword in ("properties", "patternProperties", "required"))
    return named and node.get("additionalProperties") is not False
