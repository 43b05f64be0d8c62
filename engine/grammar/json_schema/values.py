"""Constants and ranges of numbers that no value can satisfy, which the library finds too late or not at all."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor
from typing import Any

from engine.grammar.json_schema.nodes import Node, types_of

_SCALAR_LIMITS = (
    "type", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength",
)  # fmt: skip


def settle(node: dict[str, Any]) -> Node:
    """The node with only those constants that its limits allow, and without the limits that this makes superfluous.

    False if no constant is left, or no number is within the limits.
    """
    if "enum" in node or "const" in node:
        options = [node["const"]] if "const" in node else node["enum"]
        left = [option for option in options if _is_allowed(option, node)]
        rest = {keyword: node[keyword] for keyword in node if keyword not in _SCALAR_LIMITS}
        if "const" in rest and "enum" in rest:
            left = left if left and left[0] in rest.pop("enum") else []
        if not left:
            return False
        return rest if "const" in rest else rest | {"enum": left}
    types = types_of(node)
    if types is not None and set(types) <= {"integer", "number"} and not _has_number(node, "number" not in types):
        return False
    return node


def _is_allowed(value: Any, node: dict[str, Any]) -> bool:
    types = types_of(node)
    if types is not None and not any(_is_of_type(value, name) for name in types):
        return False
    if isinstance(value, str):
        return bool(node.get("minLength", 0) <= len(value) <= node.get("maxLength", len(value)))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        low, high, step = _limits(node, integers=False)
        number = Fraction(str(value))
        return (
            (low is None or number > low[0] or (number == low[0] and not low[1]))
            and (high is None or number < high[0] or (number == high[0] and not high[1]))
            and (step is None or number % step == 0)
        )
    return True


def _is_of_type(value: Any, name: str) -> bool:
    if isinstance(value, bool) or name == "boolean":
        return isinstance(value, bool) and name == "boolean"
    if name == "integer":
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    kinds: dict[str, type | tuple[type, ...]] = {
        "null": type(None), "number": (int, float), "string": str, "array": list, "object": dict,
    }  # fmt: skip
    return isinstance(value, kinds[name])


def _has_number(node: dict[str, Any], integers: bool) -> bool:
    low, high, step = _limits(node, integers=integers)
    if low is None or high is None or step is None or low[0] > high[0]:
        return True  # or the library finds it itself, and says more about it
    first, last = ceil(low[0] / step), floor(high[0] / step)
    first += low[1] and first * step == low[0]
    last -= high[1] and last * step == high[0]
    return first <= last


_Limit = tuple[Fraction, bool] | None
"""A bound, and whether it is itself excluded."""


def _limits(node: dict[str, Any], *, integers: bool) -> tuple[_Limit, _Limit, Fraction | None]:
    """The lower and the upper bound, and what a number must be a multiple of."""
    lows = [(Fraction(str(node[key])), key != "minimum") for key in ("minimum", "exclusiveMinimum") if key in node]
    highs = [(-Fraction(str(node[key])), key != "maximum") for key in ("maximum", "exclusiveMaximum") if key in node]
    low, high = max(lows, default=None), max(highs, default=None)
    step = Fraction(str(node["multipleOf"])) if "multipleOf" in node else None
    if integers:
        step = Fraction((step or Fraction(1)).numerator)  # the least multiple that is an integer
    return low, None if high is None else (-high[0], high[1]), step
