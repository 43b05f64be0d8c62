"""What the schemas that hold at one place in a text say about an object there, taken together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from math import prod
from typing import Any

from engine.grammar.json_schema.nodes import Node
from engine.grammar.json_schema.numbers import MAX_MULTIPLE


@dataclass(frozen=True)
class Scope:
    """The names, patterns and limits of one or more schemas. Their alternatives and references are not in it."""

    listed: Counter[str] = field(default_factory=Counter)
    """Names in `properties`, with the number of schemas that each has."""
    required: frozenset[str] = frozenset()
    patterns: frozenset[str] = frozenset()
    barred: int = 0
    """Listed properties that may not be there, because their schema is False."""
    is_explicit: bool = False
    """Some schema says itself which other properties there may be."""
    is_constant: bool = False
    """Some schema lists the values themselves."""
    least_properties: int = 0
    arrays: int = 0
    """Schemas that say what an array holds."""
    multiples: tuple[Decimal, ...] = ()

    @classmethod
    def of(cls, members: Sequence[dict[str, Any]]) -> Scope:
        """The scope of schemas that all hold."""
        return cls().joined(*map(cls._of_one, members))

    @classmethod
    def _of_one(cls, node: dict[str, Any]) -> Scope:
        known = node.get("properties", {})
        return cls(
            listed=Counter(known.keys()),
            required=frozenset(node.get("required", ())),
            patterns=frozenset(node.get("patternProperties", ())),
            barred=sum(inner is False for inner in known.values()),
            is_explicit="additionalProperties" in node,
            is_constant="const" in node or "enum" in node,
            least_properties=node.get("minProperties", 0),
            arrays=int("items" in node or "prefixItems" in node),
            multiples=(Decimal(str(node["multipleOf"])),) if "multipleOf" in node else (),
        )

    def joined(self, *others: Scope) -> Scope:
        """The scope of these schemas together with others."""
        scopes = (self, *others)
        listed: Counter[str] = Counter()
        for scope in scopes:
            listed.update(scope.listed)
        return Scope(
            listed=listed,
            required=frozenset().union(*(scope.required for scope in scopes)),
            patterns=frozenset().union(*(scope.patterns for scope in scopes)),
            barred=sum(scope.barred for scope in scopes),
            is_explicit=any(scope.is_explicit for scope in scopes),
            is_constant=any(scope.is_constant for scope in scopes),
            least_properties=max(scope.least_properties for scope in scopes),
            arrays=sum(scope.arrays for scope in scopes),
            multiples=tuple(number for scope in scopes for number in scope.multiples),
        )

    @property
    def names(self) -> frozenset[str]:
        return self.required.union(self.listed)

    @property
    def has_names(self) -> bool:
        """It matters to `unevaluatedProperties`."""
        return bool(self.listed or self.patterns or self.is_explicit)

    @cached_property
    def single_names(self) -> frozenset[str]:
        """Listed names whose values have one schema alone."""
        if self.patterns or self.is_explicit:
            return frozenset()
        return frozenset(name for name, count in self.listed.items() if count == 1)

    @property
    def can_be_closed(self) -> bool:
        """Properties are listed, nothing is said about others, and some object is left when there are no others."""
        enough = self.least_properties <= len(self.names) - self.barred
        return bool(self.listed) and enough and not self.is_explicit and not self.is_constant

    @property
    def multiples_overflow(self) -> bool:
        """The library's arithmetic is too narrow for a common multiple of all."""
        if len(self.multiples) < 2:
            return False
        places = max(max(0, -int(number.normalize().as_tuple().exponent)) for number in self.multiples)
        return prod(int(number.scaleb(places)) for number in self.multiples) > MAX_MULTIPLE

    def fence(self, other: Node, *, with_required: bool = True) -> dict[str, Any]:
        """A schema that allows the names and patterns of this scope, and `other` for the properties beyond them."""
        names = dict.fromkeys([*self.listed, *sorted(self.required if with_required else ())], True)
        patterns = {"patternProperties": dict.fromkeys(sorted(self.patterns), True)} if self.patterns else {}
        return {"properties": names, **patterns, "additionalProperties": other}
