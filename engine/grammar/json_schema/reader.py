"""From a JSON schema as a client wrote it to a SchemaDocument: one draft, exact numbers, no annotations.

`unevaluatedProperties` is still in the result; every other keyword is one that the library enforces.
"""

from __future__ import annotations

from collections import deque
from typing import Any
from urllib.parse import unquote

from engine.grammar.json_schema.keywords import (
    BOUNDS,
    COUNTS,
    ENFORCED_FORMATS,
    LIST_ITEMS_DRAFTS,
    OLD_DRAFTS,
    REFUSED,
    check_refused,
    draft_of,
    read_count,
    read_expression,
    read_list,
    read_names,
    read_number,
    read_object,
    read_text,
    read_types,
    unusable,
)
from engine.grammar.json_schema.nodes import BRANCHES, REFERENCE, ROOT, Node, SchemaDocument
from engine.grammar.json_schema.numbers import InexactNumber, bound, constant, is_number, multiple
from engine.grammar.json_schema.values import settle

_ARRAY_KEYWORDS = ("items", "prefixItems", "additionalItems", "unevaluatedItems")


class SchemaReader:
    """Reads one document. Raises RequestError that names a keyword; RecursionError if the document nests too deeply."""

    def __init__(self, document: dict[str, Any]) -> None:
        """document: its numbers are of type `int` or `Decimal`."""
        self._document = document
        self._draft = draft_of(document)
        self._names: dict[tuple[str, ...], str] = {(): ROOT}
        self._queue: deque[tuple[str, Any]] = deque([(ROOT, document)])
        self._embeds = False
        """A schema inside the document has an `$id` of its own."""

    def read(self) -> SchemaDocument:
        definitions: dict[str, Node] = {}
        while self._queue:
            name, schema = self._queue.popleft()
            definitions[name] = self._node(schema)
        if self._embeds and len(definitions) > 1:  # references below such an id mean another document
            raise unusable("'$id' within a schema that has a '$ref' is not supported")
        return SchemaDocument(definitions)

    def _node(self, schema: Any) -> Node:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise unusable("a schema must be an object or a boolean")
        if "$ref" in schema and self._draft in OLD_DRAFTS:
            schema = {"$ref": schema["$ref"]}
        if schema is not self._document and not str(schema.get("$id", "#")).startswith("#"):
            self._embeds = True
        node: dict[str, Any] = {}
        for keyword, value in schema.items():
            if keyword in REFUSED:
                check_refused(keyword, value, schema)
            elif keyword in _ARRAY_KEYWORDS:
                if "items" not in node and "prefixItems" not in node:
                    node |= self._items(schema)
            else:
                self._add(node, keyword, value, schema)
        if not node:
            return True
        return settle(node) if "$ref" not in node else self._separate_reference(node)

    def _add(self, node: dict[str, Any], keyword: str, value: Any, schema: dict[str, Any]) -> None:
        """Adds what a keyword asks to the node; nothing, if it is an annotation."""
        if keyword in COUNTS:
            node[keyword] = read_count(keyword, value)
        elif keyword in BOUNDS:
            node |= _bound(keyword, value, schema)
        elif keyword == "multipleOf":
            node[keyword] = _multiple(value)
        elif keyword == "type":
            types = read_types(value)
            node[keyword] = types[0] if len(types) == 1 else types
        elif keyword == "enum":
            node[keyword] = [_literal(keyword, option) for option in read_list(keyword, value)]
        elif keyword == "const":
            node[keyword] = _literal(keyword, value)
        elif keyword == "pattern" or (keyword == "format" and str(value) in ENFORCED_FORMATS):
            node[keyword] = read_expression(keyword, value) if keyword == "pattern" else value
        elif keyword == "required" and not isinstance(value, bool):  # a boolean: the third draft's
            node[keyword] = read_names(keyword, value)
        elif keyword in ("properties", "patternProperties"):
            inside = read_object(keyword, value)
            for name in inside if keyword == "patternProperties" else ():
                read_expression(keyword, name)
            node[keyword] = {name: self._node(inner) for name, inner in inside.items()}
        elif keyword in ("additionalProperties", "unevaluatedProperties"):
            node[keyword] = self._node(value)
        elif keyword in BRANCHES:
            node[keyword] = [self._node(inner) for inner in read_list(keyword, value)]
        elif keyword == "$ref":
            node[keyword] = REFERENCE + self._resolve(read_text(keyword, value))

    def _items(self, schema: dict[str, Any]) -> dict[str, Any]:
        """`prefixItems` and `items` as the newest draft means them."""
        items, prefix = schema.get("items"), schema.get("prefixItems")
        if isinstance(items, list):
            items, prefix = schema.get("additionalItems"), items
        elif self._draft in LIST_ITEMS_DRAFTS:
            prefix = None
        if "unevaluatedItems" in schema and items is None and schema["unevaluatedItems"] is not True:
            if any(keyword in schema for keyword in (*BRANCHES, "$ref")):
                raise unusable(f"'unevaluatedItems' beside '{'/'.join(BRANCHES)}' or '$ref' is not supported")
            items = schema["unevaluatedItems"]
        node: dict[str, Any] = {}
        if prefix is not None:
            node["prefixItems"] = [self._node(inner) for inner in read_list("prefixItems", prefix, least=0)]
        if items is not None:
            node["items"] = self._node(items)
        return node

    def _separate_reference(self, node: dict[str, Any]) -> Node:
        """A node in which `$ref` stands alone: with other keywords it becomes a part of `allOf`."""
        if "$ref" not in node or len(node) == 1:
            return node
        reference = {"$ref": node["$ref"]}
        parts = [reference, *node.get("allOf", [])]
        return {("allOf" if key == "$ref" else key): (parts if key in ("$ref", "allOf") else node[key]) for key in node}

    def _resolve(self, reference: str) -> str:
        """The name of the definition that a `$ref` means. Raises RequestError unless it is in this document."""
        if reference.startswith("#"):
            pointer = unquote(reference[1:])
        else:
            root = self._document.get("$id")
            if not isinstance(root, str) or reference.partition("#")[0] != root.partition("#")[0]:
                raise unusable(f"'$ref' must refer to this schema ('#/...'), not to {reference[:80]!r}")
            pointer = unquote(reference.partition("#")[2])
        if pointer and not pointer.startswith("/"):
            raise unusable(f"'$ref' to an anchor is not supported: {reference[:80]!r}")
        path = tuple(part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:])
        if path == ("",):  # "#/", which many take for the whole document
            path = ()
        if path not in self._names:
            target = self._find(path, reference)
            self._names[path] = str(len(self._names))
            self._queue.append((self._names[path], target))
        return self._names[path]

    def _find(self, path: tuple[str, ...], reference: str) -> Any:
        target: Any = self._document
        for part in path:
            if isinstance(target, dict) and part in target:
                target = target[part]
            elif isinstance(target, list) and part.isdecimal() and len(part) < 9 and int(part) < len(target):
                target = target[int(part)]
            else:
                raise unusable(f"'$ref' finds nothing at {reference[:80]!r}")
        return target


def _bound(keyword: str, value: Any, schema: dict[str, Any]) -> dict[str, Any]:
    """A bound of numbers in the newest draft's form; nothing for the fourth draft's `exclusiveMinimum: false`."""
    if isinstance(value, bool) and keyword.startswith("exclusive"):
        value = schema.get(keyword.removeprefix("exclusive").lower()) if value else None
        if value is None:
            return {}
    number = read_number(keyword, value)
    types = schema.get("type")
    integers = types is not None and "number" not in (types if isinstance(types, list) else [types])
    try:
        return {keyword: bound(number, integers=integers, exclusive=keyword.startswith("exclusive"))}
    except InexactNumber as error:
        raise unusable(f"'{keyword}': {error}") from None


def _multiple(value: Any) -> int | float:
    number = read_number("multipleOf", value)
    if number <= 0:
        raise unusable("'multipleOf' must be greater than 0")
    try:
        return multiple(number)
    except InexactNumber as error:
        raise unusable(f"'multipleOf': {error}") from None


def _literal(keyword: str, value: Any) -> Any:
    """A value of `const` or `enum`, with its numbers as the library is given them."""
    if is_number(value):
        try:
            return constant(value)
        except InexactNumber as error:
            raise unusable(f"'{keyword}': {error}") from None
    if isinstance(value, list):
        return [_literal(keyword, item) for item in value]
    if isinstance(value, dict):
        return {name: _literal(keyword, item) for name, item in value.items()}
    return value
