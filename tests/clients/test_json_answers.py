"""Structured output over HTTP: a schema is refused at once, before any event of a stream, or the answer is valid.

If one fails, a client's stream breaks in the middle, or its JSON has a number that its schema forbids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import httpx
import jsonschema_rs
import pytest

from tests.clients.conftest import KEY, QUESTION
from tests.http_helpers import delta_of, events

OBJECT = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 999}}, "required": ["n"]}


def post(http: httpx.Client, schema: str, *, stream: bool = False, more: str = "") -> httpx.Response:
    """A chat that asks for a schema, given as text."""
    form = f'{{"type": "json_schema", "json_schema": {{"name": "x", "schema": {schema}}}}}'
    messages = json.dumps([{"role": "user", "content": QUESTION}])
    body = (
        f'{{"messages": {messages}, "max_tokens": 80, "stream": {json.dumps(stream)}, "response_format": {form}{more}}}'
    )
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    return http.post("/v1/chat/completions", content=body, headers=headers)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("schema", "part"),
    [
        ('{"const": 9007199254740993}', "9007199254740993"),
        ('{"enum": [1, 0.1000000000000000000001]}', "0.1000000000000000000001"),
        ('{"type": "integer", "maximum": 18446744073709551617}', "'maximum'"),
        ('{"type": "number", "minimum": 1e400}', "'minimum'"),
        ('{"type": "object", "patternProperties": {"^a": {}, "b$": {}}}', "'patternProperties'"),
        ('{"type": "object", "properties": {"a": {"const": 1, "multipleOf": 2}}, "required": ["a"]}', "'a'"),
        ('{"type": "array", "uniqueItems": true}', "'uniqueItems'"),
        ('{"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}', "without end"),
    ],
)
def test_a_schema_that_cannot_be_kept_is_refused_at_once(
    http: httpx.Client, schema: str, part: str, stream: bool
) -> None:
    """A stream would begin and then break, or a number be another one."""
    response = post(http, schema, stream=stream)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["param"], error["code"]) == ("response_format", "invalid_grammar")
    assert part in error["message"]


@pytest.mark.parametrize(
    "schema",
    [
        OBJECT,
        OBJECT | {"title": "Answer", "deprecated": False, "x-order": 1e-400},
        {"type": "object", "properties": {"p": {"type": "string", "format": "password", "maxLength": 5}}},
        {"anyOf": [OBJECT, {"type": "null"}]},
        {"const": 0.1},
    ],
)
def test_any_other_schema_is_answered_validly(http: httpx.Client, schema: dict[str, Any]) -> None:
    """A client's validator would refuse what the server calls structured."""
    choices = [post(http, json.dumps(schema)).json()["choices"][0]]
    streamed = events(post(http, json.dumps(schema), stream=True).text)
    texts = [choices[0]["message"]["content"], "".join(delta_of(event["choices"][0]) for event in streamed)]
    for text in texts:
        assert jsonschema_rs.is_valid(schema, json.loads(text)), text


@pytest.mark.parametrize("block_length", [4, 32])
@pytest.mark.parametrize("stream", [False, True])
def test_diffusion_keeps_the_form_too(http: httpx.Client, stream: bool, block_length: int) -> None:
    """vLLM's users would have to choose between the mode and an answer that parses."""
    regex, choices = "[a-c]{3}-[0-9]{2}", ["north by northwest", "south"]
    forms: list[tuple[dict[str, Any], Callable[[str], bool]]] = [
        ({"json": OBJECT}, lambda text: jsonschema_rs.is_valid(OBJECT, json.loads(text))),
        ({"json_object": True}, lambda text: isinstance(json.loads(text), dict)),
        ({"regex": regex}, lambda text: re.fullmatch(regex, text) is not None),
        ({"choice": choices}, lambda text: text in choices),
    ]
    for form, is_right in forms:
        for temperature in (0, 1.2):
            body = {
                "prompt": QUESTION, "structured_outputs": form, "decoding": "diffusion", "max_tokens": 80, "seed": 5,
                "block_length": block_length, "temperature": temperature, "stream": stream,
            }  # fmt: skip
            response = http.post("/v1/completions", json=body)
            assert response.status_code == 200, response.text
            answers = events(response.text) if stream else [response.json()]
            text = "".join(answer["choices"][0]["text"] for answer in answers)
            if answers[-1]["choices"][0]["finish_reason"] == "stop":
                assert is_right(text), text
            else:
                assert "json_object" in form, "only an object can go on for 80 tokens"
            if not stream:
                usage = answers[0]["usage"]
                assert 0 < usage["diffusion"]["passes"] <= 2 * usage["completion_tokens"]


def test_a_stop_token_that_the_form_needs_is_refused_and_an_end_token_is_not(http: httpx.Client) -> None:
    """The answer would end in its middle, with an error."""

    def ids(text: str) -> list[int]:
        found: list[int] = http.post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()["tokens"]
        return found

    refused = post(http, json.dumps(OBJECT), more=f', "stop_token_ids": {json.dumps(ids("}"))}')
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "stop_token_ids"
    for fields in (
        ', "stop_token_ids": [2]',
        ', "ignore_eos": true',
        ', "min_tokens": 70',
        ', "repetition_penalty": 10',
    ):
        choice = post(http, json.dumps(OBJECT), more=fields).json()["choices"][0]
        assert choice["finish_reason"] == "stop"
        assert jsonschema_rs.is_valid(OBJECT, json.loads(choice["message"]["content"]))


def test_null_members_are_not_sent(http: httpx.Client) -> None:
    """A client that writes out its defaults would be refused."""
    names = (
        "json",
        "choice",
        "json_object",
        "grammar",
        "structural_tag",
        "whitespace_pattern",
        "disable_any_whitespace",
    )
    body = {"prompt": "x", "structured_outputs": dict.fromkeys(names) | {"regex": "[ab]{3}"}}
    assert re.fullmatch("[ab]{3}", http.post("/v1/completions", json=body).json()["choices"][0]["text"])
