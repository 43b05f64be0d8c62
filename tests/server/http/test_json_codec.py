"""The JSON reader: what Python's parser would let through, and another parser would read differently."""

from __future__ import annotations

import pytest

from server.http.body import EXACT_MEMBERS
from server.http.json_codec import MAX_DEPTH, InvalidJson, decode_json, encode_exactly, encode_json


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"temperature": NaN}', "NaN"),
        (b'{"temperature": -Infinity}', "-Infinity"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"\\udc00": 1}', "surrogate"),
        (b"\xff\xfe{}", "UTF-8"),
        (b'{"a": ', "line 1 column 7"),
        (b"", "parse"),
        (b"[" * 100_000 + b"]" * 100_000, "nested"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "nested"),
        (b'{"n": ' + b"9" * 5000 + b"}", "too long"),
    ],
)
def test_what_is_not_plain_json_is_refused_with_a_reason(body: bytes, says: str) -> None:
    """Without it a client's mistake, or an attack, becomes a 500 or a value nobody meant."""
    with pytest.raises(InvalidJson, match=says):
        decode_json(body)


def test_a_number_beyond_floats_is_left_to_the_schema_which_names_the_field() -> None:
    assert decode_json(b'{"temperature": 1e999}')["temperature"] == float("inf")


@pytest.mark.parametrize("member", EXACT_MEMBERS)
@pytest.mark.parametrize("number", ["9007199254740993", "0.1000000000000000055511151", "1E+400", "-0.10", "12"])
def test_numbers_of_a_schema_are_kept_as_they_are_written(member: str, number: str) -> None:
    """The answer would keep to a rounded number, without a word."""
    value = decode_json(
        f'{{"temperature": 0.10, "{member}": {{"json": {{"const": {number}}}}}}}'.encode(), exact=EXACT_MEMBERS
    )
    assert value["temperature"] == 0.1
    assert type(value["temperature"]) is float
    assert encode_exactly(value[member]) == f'{{"json":{{"const":{number}}}}}'


def test_a_number_that_nobody_can_hold_is_refused() -> None:
    with pytest.raises(InvalidJson, match="out of range"):
        decode_json(b'{"structured_outputs": {"json": {"const": 1e99999999999999999999}}}', exact=EXACT_MEMBERS)


def test_a_whole_surrogate_pair_is_a_character() -> None:
    assert decode_json(b'"\\ud83d\\ude00"') == "\U0001f600"


def test_what_is_written_is_compact_utf8() -> None:
    assert encode_json({"a": "é", "b": [1, None]}) == '{"a":"é","b":[1,null]}'.encode()
