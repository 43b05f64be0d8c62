"""The numbers of a JSON schema, read exactly as they are written, and which of them the grammar library can enforce.

The library computes with doubles and reads decimals less exactly than Python does. A number that it would round is
refused, because a rounded bound or constant would make answers that the schema forbids.
"""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation
from typing import Any

MAX_SAFE = 2**53
"""Integers up to this are doubles."""
MAX_INT64 = 2**63 - 1
MAX_POWER = 22
"""Powers of ten up to this are doubles: a decimal of few digits then needs one rounding, alike in all readers."""
MAX_MULTIPLE = 2**32 - 1
"""The library's largest `multipleOf`, decimal point left out."""

Number = int | Decimal


class InexactNumber(ValueError):
    """A number that cannot be enforced as it is written. The message says so."""

    def __init__(self, number: Number) -> None:
        text = str(number)
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        super().__init__(f"the number {shown} cannot be enforced exactly")


def read_exact(text: str) -> Any:
    """A JSON value whose numbers are of type `int` or `Decimal`. Raises ValueError or RecursionError."""
    return json.loads(text, parse_float=_read_decimal, parse_int=_read_integer, parse_constant=_refuse)


def _read_decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        raise ValueError(f"the number {text[:40]} is out of range") from None


def _read_integer(text: str) -> Number:
    return int(text) if len(text) < 100 else Decimal(text)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def is_number(value: Any) -> bool:
    return type(value) is int or type(value) is Decimal


def constant(number: Number) -> int | float:
    """A number of `const` or `enum`, as the library is given it. Raises InexactNumber."""
    whole = as_integer(number)
    if whole is None:
        return _double(number)
    if abs(whole) > MAX_INT64 or int(float(whole)) != whole:  # beside `type: integer` it becomes a 64-bit integer
        raise InexactNumber(number)
    return whole


def bound(number: Number, *, integers: bool, exclusive: bool) -> int | float:
    """A number of `minimum`, `maximum` and their exclusive forms. Raises InexactNumber.

    integers: only integers are bounded by it. The library then computes with 64-bit integers.
    """
    whole = as_integer(number)
    if whole is not None and abs(whole) < MAX_SAFE:
        return whole
    if integers and not exclusive and whole is not None and abs(whole) <= MAX_INT64:
        # The double above the largest 64-bit integer is taken for that integer again.
        if whole == MAX_INT64 or int(float(whole)) == whole:
            return whole
        raise InexactNumber(number)
    value = _double(number)
    if abs(value) > MAX_INT64 or (exclusive and abs(value) >= MAX_SAFE):  # the library may add 1 to exclude it
        raise InexactNumber(number)
    return value


def multiple(number: Number) -> int | float:
    """A number of `multipleOf`, greater than zero. Raises InexactNumber."""
    value = abs(_double(number))
    scaled, places = value, 0
    while scaled != int(scaled):  # the library's own way to find the decimal places, with the same roundings
        scaled, places = scaled * 10, places + 1
    if scaled > MAX_MULTIPLE or Decimal(int(scaled)).scaleb(-places) != number:
        raise InexactNumber(number)
    whole = as_integer(number)
    return value if whole is None else whole


def as_integer(number: Number) -> int | None:
    """The number as an `int`; None if it is none, or one of very many digits."""
    if type(number) is int:
        return number
    decimal = Decimal(number)
    if decimal == 0:
        return 0
    return int(decimal) if decimal.adjusted() < 100 and decimal == decimal.to_integral_value() else None


def _double(number: Number) -> float:
    """The double that is written as this number. Raises InexactNumber if not every reader finds one."""
    if not number:
        return 0.0
    if abs(Decimal(number).adjusted()) > 2 * MAX_POWER:
        raise InexactNumber(number)
    decimal = Decimal(number).normalize()
    coefficient, power = int("".join(map(str, decimal.as_tuple().digits))), int(decimal.as_tuple().exponent)
    value = float(decimal)
    if abs(power) > MAX_POWER or coefficient > MAX_SAFE or Decimal(repr(value)) != number:
        raise InexactNumber(number)
    return value
