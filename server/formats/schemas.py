"""What formats that write arguments one by one need to know of a tool's schema."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from engine.grammar.structure import Inner
from engine.request import Grammar
from server.formats.tools import Tool, UnusableSchema, is_json, quoted
from server.http.json_codec import encode_exactly

_DEFINITIONS = ("$defs", "definitions", "$schema")
_PLAIN_OBJECT = frozenset(
    ("type", "properties", "required", "additionalProperties", "title", "description", "default", "examples",
     "strict", "$id", "$comment", *_DEFINITIONS)
)  # fmt: skip
_ANNOTATIONS = frozenset(("title", "description", "default", "examples", "deprecated", "$comment"))
_WORDS = {"True": "true", "False": "false", "None": "null"}


@dataclass(frozen=True)
class Parameter:
    """One argument of a function."""

    name: str
    schema: Any
    """A schema of its own: what it refers to is in it."""
    required: bool

    @property
    def is_text(self) -> bool:
        """Any string will do, or perhaps null: it can be written as it is."""
        types = _types_of(self.schema)
        return types is None or types - {"null"} == {"string"}

    @property
    def is_string(self) -> bool:
        """Any string will do, and nothing else."""
        return _types_of(self.schema) == {"string"}

    @property
    def options(self) -> list[str] | None:
        """The strings that it may be; None where it is not such a list."""
        if not isinstance(self.schema, dict):
            return None
        options = [self.schema["const"]] if "const" in self.schema else self.schema.get("enum")
        rest = self.schema.keys() - _ANNOTATIONS - {"type", "enum", "const", *_DEFINITIONS}
        is_list = isinstance(options, list) and bool(options) and all(isinstance(option, str) for option in options)
        fits = self.schema.get("type", "string") == "string" and is_list and not rest
        return list(options) if fits and options is not None else None

    @property
    def json(self) -> Inner:
        """The argument as JSON."""
        schema = self.schema if isinstance(self.schema, dict) else {"anyOf": [self.schema]}
        return Inner(Grammar(kind="json_schema", source=encode_exactly(schema)))

    def json_of(self, text: str) -> str:
        """The argument, as JSON, that a text means which is not quoted where it is a string."""
        if self.options is not None and text in self.options:
            return quoted(text)
        types = _types_of(self.schema)
        if self.is_text and types is not None and not ("null" in types and text in ("null", "None")):
            return quoted(text)
        return text if is_json(text) else _WORDS.get(text.strip()) or quoted(text)


def parameters_of(tool: Tool) -> list[Parameter]:
    """The arguments of a tool in the order of its schema. Raises UnusableSchema where it does not list them."""
    root = tool.parameters
    schema = _resolved(tool, root, root)
    unknown = schema.keys() - _PLAIN_OBJECT
    if unknown or schema.get("type", "object") != "object":
        what = f"has '{min(unknown)}'" if unknown else "is not of type 'object'"
        raise UnusableSchema(tool, f"{what} at its top: this model's calls need a plain list of 'properties'")
    known, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(known, dict) or not isinstance(required, list):
        raise UnusableSchema(tool, "must have an object for 'properties' and a list for 'required'")
    shared = {key: root[key] for key in _DEFINITIONS if key in root}
    names = [*known, *(name for name in required if isinstance(name, str) and name not in known)]
    for name in names:
        if not re.fullmatch(r"[^\s<>=(),][^<>=(),\n]*", name):
            raise UnusableSchema(tool, f"has a property {name[:64]!r}, which this model's calls cannot spell")
    return [Parameter(name, _joined(tool, known.get(name, {}), shared), name in required) for name in names]


def known_parameters(tool: Tool) -> dict[str, Parameter]:
    """The arguments of a tool by name, as far as its schema lists them."""
    try:
        return {parameter.name: parameter for parameter in parameters_of(tool)}
    except UnusableSchema:
        return {}


def _joined(tool: Tool, schema: Any, shared: dict[str, Any]) -> Any:
    """A property's schema that stands alone, with the definitions of the whole one."""
    if not isinstance(schema, dict):
        return schema
    text = json.dumps(schema, default=str)
    if '"$ref"' not in text:
        return schema
    for target in re.findall(r'"\$ref": "([^"]*)"', text):
        if not target.startswith(("#/$defs/", "#/definitions/")):
            raise UnusableSchema(tool, f"has a '$ref' to {target[:64]!r}: this model's calls need '#/$defs/...'")
    return {**shared, **schema}


def _resolved(tool: Tool, schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """The schema that a lone `$ref` at the top means."""
    for _ in range(8):
        if not schema.keys() <= {"$ref", *_DEFINITIONS, *_ANNOTATIONS} or "$ref" not in schema:
            return schema
        path = str(schema["$ref"]).removeprefix("#/").split("/")
        group = root.get(path[0])
        found = group.get(path[1]) if len(path) == 2 and isinstance(group, dict) else None
        if not isinstance(found, dict):
            break
        schema = found
    raise UnusableSchema(tool, "has a '$ref' at its top that leads to no object")


def _types_of(schema: Any) -> set[str] | None:
    """The types of a schema that says nothing but types; None where any value will do, empty where it says more."""
    if schema is True or not isinstance(schema, dict):
        return None if schema is True else set()
    rest = schema.keys() - _ANNOTATIONS - set(_DEFINITIONS)
    if not rest:
        return None
    if rest == {"type"}:
        types = schema["type"]
        return set(types) if isinstance(types, list) and all(isinstance(one, str) for one in types) else {str(types)}
    if rest == {"anyOf"} and isinstance(schema["anyOf"], list):
        branches = [_types_of(branch) for branch in schema["anyOf"]]
        return set().union(*(branch or {"more"} for branch in branches))
    return set()
