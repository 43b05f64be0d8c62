"""JSON as clients send and receive it: one strict reader and one fast writer.

The reader refuses what Python's `json` lets through and what another parser may read differently: NaN and infinities,
duplicate keys, lone surrogates, nesting beyond what recursion bears.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import Any

import msgspec

MAX_DEPTH = 32
"""Deepest nesting of a request. A JSON schema is the only part of a request that nests at all deeply."""

_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_encoder = msgspec.json.Encoder()
_exact_encoder = msgspec.json.Encoder(decimal_format="number")
_LINE_ENDS = ((b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"), (b"\xc2\x85", b"\\u0085"))


class InvalidJson(ValueError):
    """The text is not JSON this server reads. The message is fit for the client."""


def encode_json(value: object) -> bytes:
    """Compact UTF-8 JSON on one line, also for readers that take Unicode's other line ends for one."""
    data = _encoder.encode(value)
    for raw, escaped in _LINE_ENDS:
        if raw in data:
            data = data.replace(raw, escaped)
    return data


def decode_json(body: bytes, *, exact: Iterable[str] = ()) -> Any:
    """Reads one JSON value; raises InvalidJson.

    exact: members of the outermost object whose numbers are kept as written: those that no float holds are `Decimal`.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise InvalidJson(f"The request body is not valid UTF-8 (byte {exc.start}).") from None
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    except InvalidJson:
        raise
    except RecursionError:
        raise InvalidJson("The request body is nested too deeply.") from None
    except json.JSONDecodeError as exc:
        raise InvalidJson(
            f"We could not parse the JSON body of your request: {exc.msg} at line {exc.lineno} column {exc.colno}."
        ) from None
    except ValueError:  # an integer of more digits than Python converts
        raise InvalidJson("The request body holds a number that is too long.") from None
    _check_depth(value)
    if _ESCAPED_SURROGATE.search(body):
        _check_surrogates(value)
    members = [name for name in exact if isinstance(value, dict) and isinstance(value.get(name), dict | list)]
    if members:
        kept = json.loads(text, parse_float=_keep_number, parse_int=_keep_number)
        value |= {name: kept[name] for name in members}
    return value


def encode_exactly(value: object) -> str:
    """JSON text with every `Decimal` as a number of just these digits."""
    return _exact_encoder.encode(value).decode()


def _keep_number(text: str) -> int | Decimal:
    if len(text) < 16 and text.lstrip("-").isdigit():
        return int(text)
    try:
        return Decimal(text)
    except InvalidOperation:
        raise InvalidJson("The request body holds a number that is out of range.") from None


def _refuse_constant(name: str) -> Any:
    raise InvalidJson(f"We could not parse the JSON body of your request: {name} is not a JSON number.")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise InvalidJson(f"The request body has the key {json.dumps(key[:64])} twice in one object.")
            seen.add(key)
    return result


def _check_depth(value: Any) -> None:
    """Breadth first, so that the check itself does not recurse. Lists of scalars are not walked."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise InvalidJson(f"The request body is nested deeper than {MAX_DEPTH} levels.")
        children: list[Any] = []
        for node in level:
            items = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
            children.extend(item for item in items if type(item) is dict or type(item) is list)
        level = children


def _check_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidJson("The request body holds a string with half of a surrogate pair.") from None
