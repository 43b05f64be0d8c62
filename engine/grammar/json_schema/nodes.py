"""The form in which the rest of the package works with a schema: one draft, exact numbers, named definitions.

A `Node` is True, False, `{"$ref": "#/$defs/NAME"}` alone, or an object of enforced keywords in the form that the newest
draft gives them, in the order in which they were written: the library writes properties in that order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Node = bool | dict[str, Any]
REFERENCE = "#/$defs/"
ROOT = "0"
"""Name of the definition that is the whole schema."""
BRANCHES = ("allOf", "anyOf", "oneOf")
ALTERNATIVES = ("anyOf", "oneOf")


@dataclass(frozen=True)
class SchemaDocument:
    """A whole schema: the root and what it refers to, by name, in the order in which they were found."""

    definitions: dict[str, Node]


def referred(node: Node) -> str | None:
    """The name of the definition that a node stands for; None for any other node."""
    return node["$ref"].removeprefix(REFERENCE) if isinstance(node, dict) and "$ref" in node else None


def map_subschemas(node: dict[str, Any], change: Callable[[Node], Node]) -> dict[str, Any]:
    """A copy of a node whose direct subschemas have been changed."""
    mapped: dict[str, Any] = {}
    for keyword, value in node.items():
        if keyword in ("properties", "patternProperties"):
            mapped[keyword] = {name: change(inner) for name, inner in value.items()}
        elif keyword in ("prefixItems", *BRANCHES):
            mapped[keyword] = [change(inner) for inner in value]
        elif keyword in ("items", "additionalProperties", "unevaluatedProperties"):
            mapped[keyword] = change(value)
        else:
            mapped[keyword] = value
    return mapped


def all_nodes(node: Node) -> Iterator[dict[str, Any]]:
    """The objects among a node and everything inside it. References are not followed."""
    pending = [node]

    def collect(child: Node) -> Node:
        pending.append(child)
        return child

    while pending:
        inner = pending.pop()
        if isinstance(inner, dict):
            yield inner
            map_subschemas(inner, collect)


def types_of(node: dict[str, Any]) -> list[str] | None:
    """The types that a node names; None if it names none."""
    types = node.get("type")
    return [types] if isinstance(types, str) else types
