"""Closed objects: an object whose schema lists properties has no others, unless the schema says so.

A model would go on with names of its own until its tokens are used up. Closing never forbids the last text that a
schema allows. Schemas that hold at the same place in a text, such as the members of `allOf`, are therefore closed as
one, around the names of all of them. `unevaluatedProperties` is expressed in the same way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import Any

from engine.grammar.json_schema.keywords import unusable
from engine.grammar.json_schema.nodes import ALTERNATIVES, REFERENCE, ROOT, Node, SchemaDocument, referred, types_of
from engine.grammar.json_schema.scope import Scope

MAX_NODES = 50_000
"""Most schemas that a document may amount to where references are written out, and objects closed with their names."""
_STRUCTURE = frozenset(
    ("properties", "patternProperties", "additionalProperties", "unevaluatedProperties", "required", "minProperties",
     "maxProperties", "items", "prefixItems", "const", "enum", "allOf")
)  # fmt: skip


class TooManySchemas(Exception):
    """Written out, the document would have more than MAX_NODES schemas."""


class SchemaCloser:
    """Rewrites one document into a JSON schema for the library. Where a definition is needed both closed and as it
    was, the result has it twice."""

    def __init__(self, document: SchemaDocument) -> None:
        self._definitions = document.definitions
        self._wanted: dict[str, tuple[str, bool]] = {}
        self._queue: deque[str] = deque()
        self._count = 0

    def write(self, *, closed: bool) -> dict[str, Any]:
        """closed: otherwise objects are open unless the schema closes them.

        Raises TooManySchemas; RequestError for keywords that cannot be enforced together.
        """
        root = self._refer(ROOT, closed)
        definitions: dict[str, Node] = {}
        while self._queue:
            name = self._queue.popleft()
            source, closed = self._wanted[name]
            definitions[name] = self._place(self._definitions[source], closed)
        return {"$ref": root["$ref"], "$defs": definitions}

    def _refer(self, source: str, closed: bool) -> dict[str, Any]:
        name = source if closed else f"{source}-open"
        if name not in self._wanted:
            self._wanted[name] = (source, closed)
            self._queue.append(name)
        return {"$ref": REFERENCE + name}

    def _place(self, node: Node, closed: bool) -> Node:
        """A schema that holds alone at its place in the text."""
        if isinstance(node, bool):
            return node
        name = referred(node)
        if name is not None:
            return self._refer(name, closed)
        choices = [keyword for keyword in ALTERNATIVES if keyword in node]
        if len(choices) == 1 and not _STRUCTURE & node.keys():
            # The library takes options of which exactly one may match only if it sees how they differ.
            look = self._written_out if choices[0] == "oneOf" else list
            return node | {choices[0]: [self._place(branch, closed) for branch in look(node[choices[0]])]}
        if node.keys() == {"allOf"} and len(node["allOf"]) == 1:
            return self._place(node["allOf"][0], closed)
        members = self._members(node)
        if not members or False in members:
            return not members
        if len(members) == 1 and not choices:
            return self._single(members[0], closed)
        return self._merged(members, closed)

    def _written_out(self, branches: list[Node]) -> list[Node]:
        """The branches, each reference replaced by what it refers to."""
        found = list(branches)
        for i, branch in enumerate(found):
            while (name := referred(branch)) is not None:
                self._count_up()
                branch = found[i] = self._definitions[name]
        return found

    def _count_up(self, number: int = 1) -> None:
        self._count += number
        if self._count > MAX_NODES:
            raise TooManySchemas

    # -- one schema ------------------------------------------------------------------------------------------------

    def _single(self, node: dict[str, Any], closed: bool) -> Node:
        known, patterns = node.get("properties", {}), node.get("patternProperties", {})
        # A name that is listed and matches a pattern has two schemas: closed, they could exclude each other.
        listed = closed and not (patterns and not all(map(_is_scalar, patterns.values())))
        matched = closed and not (known and not all(map(_is_scalar, known.values())))
        result = self._children(node, known if listed else (), matched, closed, closed)
        scope = Scope.of([node])
        if closed and scope.can_be_closed and "object" in (types_of(node) or ["object"]):
            others = dict.fromkeys((name for name in node.get("required", ()) if name not in known), True)
            result["properties"] = result["properties"] | others
            result["additionalProperties"] = False
        _check_least(scope, is_closed=result.get("additionalProperties") is False and not patterns)
        return result

    def _children(
        self, node: dict[str, Any], names: Collection[str], matched: bool, additional: bool, items: bool
    ) -> dict[str, Any]:
        """A copy of a node with its subschemas placed. names: the properties that may be closed; matched, additional,
        items: whether those of `patternProperties`, of `additionalProperties` and of arrays may be."""
        result = dict(node)
        if "properties" in node:
            known = node["properties"]
            result["properties"] = {name: self._place(known[name], name in names) for name in known}
        if "patternProperties" in node:
            found = node["patternProperties"]
            result["patternProperties"] = {pattern: self._place(found[pattern], matched) for pattern in found}
        if "additionalProperties" in node:
            result["additionalProperties"] = self._place(node["additionalProperties"], additional)
        if "items" in node:
            result["items"] = self._place(node["items"], items)
        if "prefixItems" in node:
            result["prefixItems"] = [self._place(item, items) for item in node["prefixItems"]]
        return result

    # -- several schemas at one place ------------------------------------------------------------------------------

    def _members(self, node: Node, inside: tuple[str, ...] = ()) -> list[Any]:
        """The schemas that hold where a node does: objects without `allOf`, `$ref` and `unevaluatedProperties`, or
        False. inside: the definitions that are being written out."""
        self._count_up()
        if isinstance(node, bool):
            return [] if node else [False]
        name = referred(node)
        if name in inside:
            raise unusable("a '$ref' leads back to itself at the same place")
        if name is not None:
            return self._members(self._definitions[name], (*inside, name))
        own = {keyword: node[keyword] for keyword in node if keyword not in ("allOf", "unevaluatedProperties")}
        members = [member for part in node.get("allOf", []) for member in self._members(part, inside)]
        if own:
            keywords = list(node)
            first = "allOf" in node and "properties" in node and keywords.index("allOf") < keywords.index("properties")
            members = [*members, own] if first else [own, *members]
        if "unevaluatedProperties" in node and False not in members:
            members = self._with_unevaluated(members, node["unevaluatedProperties"], inside)
        return members

    def _with_unevaluated(self, members: list[Any], other: Node, inside: tuple[str, ...]) -> list[Any]:
        """The members with `unevaluatedProperties` in the form of `additionalProperties`."""
        scope = Scope.of(members)
        if scope.is_explicit and other is not True:
            return members  # `additionalProperties` has evaluated all
        branches = self._branch_members(members, inside)
        if other is not True and any(Scope.of(branch).has_names for branch in branches):
            raise unusable("'unevaluatedProperties' beside alternatives that have properties is not supported")
        if len(members) == 1:
            return [{"additionalProperties": other, **members[0]}]
        rest = {"additionalProperties": True} if other is True else scope.fence(other, with_required=False)
        return [*members, rest]

    def _branch_members(self, members: list[Any], inside: tuple[str, ...] = ()) -> list[list[Any]]:
        """The members of each alternative that some members have, and of each that these have."""
        found: list[list[Any]] = []
        for member in members:
            for keyword in ALTERNATIVES:
                for branch in member.get(keyword, []) if isinstance(member, dict) else []:
                    inner = self._members(branch, inside)
                    if False not in inner:
                        found += [inner, *self._branch_members(inner, inside)]
        return found

    def _merged(self, members: list[dict[str, Any]], closed: bool) -> Node:
        own = Scope.of(members)
        branches = self._branch_members(members)
        whole = own.joined(*map(Scope.of, branches))
        if whole.multiples_overflow:
            raise unusable("these 'multipleOf' together are not supported")
        groups = sum(keyword in member for member in members for keyword in ALTERNATIVES)
        fenced = closed and not own.is_explicit and not own.is_constant
        written = [self._member(member, whole, closed, own if fenced and groups == 1 else None) for member in members]
        if fenced and groups != 1 and whole.can_be_closed:
            written.append(whole.fence(False))
        _check_least(whole, is_closed=fenced and groups != 1 and whole.can_be_closed and not whole.patterns)
        return written[0] if len(written) == 1 else {"allOf": written}

    def _member(self, member: dict[str, Any], whole: Scope, closed: bool, fence: Scope | None) -> dict[str, Any]:
        """One of several schemas at a place. fence: the scope of what holds beside its alternatives, if each of them
        is to be closed together with that."""
        names = whole.single_names if closed else frozenset()
        result = self._children(member, names, False, False, closed and whole.arrays < 2)
        for keyword in ALTERNATIVES:
            if keyword in member:
                result[keyword] = [self._branch(branch, whole, closed, fence) for branch in member[keyword]]
        return result

    def _branch(self, branch: Node, whole: Scope, closed: bool, fence: Scope | None) -> Node:
        members = self._members(branch)
        if False in members:
            return False
        written = [self._member(member, whole, closed, None) for member in members]
        if fence is not None:
            self._count_up(len(fence.names))
            scope = fence.joined(*map(Scope.of, [members, *self._branch_members(members)]))
            if scope.can_be_closed:
                written.append(scope.fence(False))
        return {"allOf": written} if len(written) != 1 else written[0]


def _is_scalar(node: Node) -> bool:
    """Whether no object and no array may match, as far as the node itself tells."""
    types = None if isinstance(node, bool) else types_of(node)
    return node is False or (types is not None and not {"object", "array"} & set(types))


def _check_least(scope: Scope, *, is_closed: bool) -> None:
    """Raises RequestError where an answer could reach `minProperties` by using one name twice."""
    if scope.least_properties > len(scope.required) + 1 and not is_closed:
        raise unusable("'minProperties' is only supported up to one more than the required properties")
