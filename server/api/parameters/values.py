"""The types of request fields that need more than a range: strict, finite, and bounded in everything that costs."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from server.api.fields import invalid

MAX_STOPS = 16
MAX_STOP_LENGTH = 256
MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024
MAX_STOP_TOKENS = 128
MAX_ALLOWED_TOKENS = 4096
MAX_LISTED_TOKENS = 128
MAX_BAD_WORDS = 128
MAX_COUNT = 2**31
"""Bound of numbers that count tokens or candidates; each has a tighter limit of its own elsewhere."""
MIN_SENT_SEED, MAX_SENT_SEED = -(2**63), 2**64 - 1
"""Seeds that clients may send: what 64 bits hold, signed or not."""


def _check_stop(value: Any) -> Any:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(type(stop) is str for stop in stops):
        raise invalid("must be a string or a list of strings")
    if len(stops) > MAX_STOPS:
        raise invalid(f"must have at most {MAX_STOPS} strings, not {len(stops)}")
    for stop in stops:
        if not 1 <= len(stop) <= MAX_STOP_LENGTH:
            raise invalid(f"must hold strings of 1 to {MAX_STOP_LENGTH} characters")
    return stops


_STOP = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_LENGTH}
Stops = Annotated[
    list[str],
    BeforeValidator(_check_stop),
    WithJsonSchema({"anyOf": [_STOP, {"type": "array", "maxItems": MAX_STOPS, "items": _STOP}]}),
]


def _check_logit_bias(value: Any) -> Any:
    if not isinstance(value, dict):
        raise invalid("must be an object from token ids to numbers")
    if len(value) > MAX_LOGIT_BIAS:
        raise invalid(f"must have at most {MAX_LOGIT_BIAS} entries, not {len(value)}")
    biases: dict[int, float] = {}
    for key, bias in value.items():
        if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 10):
            raise invalid(f"must have token ids, written as whole numbers, for keys, not {key[:32]!r}")
        if type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise invalid(f"must have numbers from -100 to 100 for values; that of key {key!r} is not one")
        biases[int(key)] = float(bias)
    return biases


LogitBias = Annotated[
    dict[int, float],
    BeforeValidator(_check_logit_bias),
    WithJsonSchema(
        {
            "type": "object",
            "maxProperties": MAX_LOGIT_BIAS,
            "propertyNames": {"pattern": "^[0-9]{1,10}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        }
    ),
]


def _tokens(least: int, most: int) -> tuple[BeforeValidator, WithJsonSchema]:
    """The metadata of a field that holds so many token ids, each of which counts once."""

    def check(value: Any) -> Any:
        if not isinstance(value, list) or not all(type(token) is int for token in value):
            raise invalid("must be a list of token ids")
        if not least <= len(value) <= most:
            raise invalid(f"must hold {least} to {most} token ids, not {len(value)}")
        return tuple(dict.fromkeys(value))

    items = {"type": "integer", "minimum": 0}
    return BeforeValidator(check), WithJsonSchema(
        {"type": "array", "minItems": least, "maxItems": most, "items": items}
    )


AllowedTokens = Annotated[tuple[int, ...], *_tokens(1, MAX_ALLOWED_TOKENS)]
ListedTokens = Annotated[tuple[int, ...], *_tokens(0, MAX_LISTED_TOKENS)]
BadWord = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]


def _check_top_k(value: Any) -> Any:
    if type(value) is int and value < -1:
        raise invalid("must be at least 1, or 0 or -1 for no limit")
    return 0 if type(value) is int and value == -1 else value


TopK = Annotated[
    int,
    BeforeValidator(_check_top_k),
    Field(ge=0, le=MAX_COUNT),
    WithJsonSchema({"type": "integer", "minimum": -1, "maximum": MAX_COUNT}),
]


def _check_seed(value: Any) -> Any:
    return None if type(value) is int and value == -1 else value


Seed = Annotated[Annotated[int, Field(ge=MIN_SENT_SEED, le=MAX_SENT_SEED)] | None, BeforeValidator(_check_seed)]


def _empty_is_unset(value: Any) -> Any:
    return None if value == "" else value


OptionalText = Annotated[str | None, BeforeValidator(_empty_is_unset)]
"""A string that may be left out; an empty one is as good as none."""
