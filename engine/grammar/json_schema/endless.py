"""Definitions that no finite text can match, such as an object that requires another of its own kind."""

from __future__ import annotations

from typing import Any

from engine.grammar.json_schema.keywords import unusable
from engine.grammar.json_schema.nodes import (
    ALTERNATIVES,
    ROOT,
    Node,
    SchemaDocument,
    map_subschemas,
    referred,
    types_of,
)

SWEEPS = 8
"""After so many looks at all definitions without a result, none is taken for endless."""


def without_endless(document: SchemaDocument) -> SchemaDocument:
    """The document with False for each reference to an endless definition, so that an answer never begins one.

    Raises RequestError if the whole schema is endless.
    """
    definitions = document.definitions
    finite: set[str] = set()
    for _ in range(SWEEPS):
        before = len(finite)
        for name in reversed(definitions):  # what a definition refers to mostly comes after it
            if name not in finite and _is_finite(definitions[name], finite):
                finite.add(name)
        if len(finite) == before:
            break
    else:
        return document
    if ROOT not in finite:
        raise unusable("no text can match it, because it refers to itself without end")
    if len(finite) == len(definitions):
        return document
    return SchemaDocument({name: _replace_endless(definitions[name], finite) for name in definitions if name in finite})


def _is_finite(node: Node, finite: set[str]) -> bool:
    """Whether a finite text may match, as far as the definitions in `finite` tell. When in doubt, it may."""
    if isinstance(node, bool):
        return True
    name = referred(node)
    if name is not None:
        return name in finite
    if not all(_is_finite(part, finite) for part in node.get("allOf", [])):
        return False
    if any(keyword in node and not any(_is_finite(part, finite) for part in node[keyword]) for keyword in ALTERNATIVES):
        return False
    if "const" in node or "enum" in node:
        return True
    return any(_type_is_finite(node, name, finite) for name in types_of(node) or ["null"])


def _type_is_finite(node: dict[str, Any], name: str, finite: set[str]) -> bool:
    if name == "object":
        known = node.get("properties", {})
        other = True if node.get("patternProperties") else node.get("additionalProperties", True)
        return all(_is_finite(known.get(key, other), finite) for key in node.get("required", []))
    if name == "array":
        least, first = node.get("minItems", 0), node.get("prefixItems", [])
        needed = [*first[:least], *([node.get("items", True)] if least > len(first) else [])]
        return all(_is_finite(item, finite) for item in needed)
    return True


def _replace_endless(node: Node, finite: set[str]) -> Node:
    if isinstance(node, bool):
        return node
    name = referred(node)
    if name is not None:
        return node if name in finite else False
    return map_subschemas(node, lambda inner: _replace_endless(inner, finite))
