"""Bodies at the size limit must not hold up everybody else: what they cost the event loop beyond reading their JSON."""

from __future__ import annotations

import asyncio
import json
import time
from itertools import pairwise
from typing import Any

import pytest

from server.api.chat.request import ChatRequest
from server.api.completions.request import CompletionRequest
from server.api.requests import parse_generation
from server.api.tokens import DetokenizeRequest, TokenizeRequest
from server.http.errors import BadRequest
from tests.server.conftest import Api

pytestmark = pytest.mark.anyio

MANY = 180_000
VALUES: dict[str, list[Any]] = {
    "numbers": [1] * MANY, "texts": ["a"] * MANY, "lists": [[1]] * MANY, "objects": [{"a": 1}] * MANY,
}  # fmt: skip
HELLO = [{"role": "user", "content": "x"}]


def _bodies(value: list[Any]) -> dict[str, tuple[type, dict[str, Any]]]:
    """A request for each field that may be long."""
    schema = {"name": "x", "schema": {"enum": value}}
    return {
        "stop": (CompletionRequest, {"prompt": "x", "stop": value}),
        "stop_token_ids": (CompletionRequest, {"prompt": "x", "stop_token_ids": value}),
        "logit_bias": (CompletionRequest, {"prompt": "x", "logit_bias": dict.fromkeys(map(str, range(len(value))), 1)}),
        "prompt": (CompletionRequest, {"prompt": value}),
        "choice": (CompletionRequest, {"prompt": "x", "structured_outputs": {"choice": value}}),
        "json": (CompletionRequest, {"prompt": "x", "structured_outputs": {"json": {"enum": value}}}),
        "schema": (ChatRequest, {"messages": HELLO, "response_format": {"type": "json_schema", "json_schema": schema}}),
        "messages": (ChatRequest, {"messages": value}),
        "content": (ChatRequest, {"messages": [{"role": "user", "content": value}]}),
    }


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("field", _bodies([]))
def test_a_long_field_costs_little_more_than_its_reading(kind: str, field: str) -> None:
    """A list of a million wrong strings once took twenty seconds: an error was made for each."""
    model, body = _bodies(VALUES[kind])[field]
    copied = json.dumps(body)
    reading = min(_seconds(lambda: json.loads(copied)) for _ in range(3))

    def parse() -> None:
        try:
            fields = parse_generation(model, body)
            for part in (fields.structured_outputs, fields.response_format):
                if part is not None:
                    assert part.grammar is not None
        except BadRequest:
            pass

    assert min(_seconds(parse) for _ in range(3)) < 2 * reading + 0.05


def _seconds(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@pytest.mark.parametrize("route", ["/detokenize", "/v1/completions"])
async def test_more_tokens_than_the_context_are_refused(api: Api, route: str) -> None:
    body = {"tokens": [9] * 100_000} if route == "/detokenize" else {"prompt": [9] * 100_000}
    response = await api.http.post(route, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert "256 tokens" in response.json()["error"]["message"]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
async def test_others_go_on_while_a_large_body_is_parsed(api: Api, route: str, value: str) -> None:
    """A health probe must not wait for somebody's four megabytes."""
    body = json.dumps({"prompt": VALUES[value], "tokens": VALUES[value]}).encode()
    reading = _seconds(lambda: json.loads(body))
    turns = [time.perf_counter()]
    request = asyncio.create_task(api.http.post(route, content=body, headers={"content-type": "application/json"}))
    while not request.done():
        await asyncio.sleep(0.001)
        turns.append(time.perf_counter())
    assert (await request).status_code == 400
    # The C parts of reading give no other thread a turn; everything else must.
    assert max(later - sooner for sooner, later in pairwise(turns)) < 3 * reading + 0.1


async def test_a_large_body_is_answered_as_a_small_one(api: Api) -> None:
    padded = {"prompt": "Hello", "user": "x" * 100_000}
    assert (await api.complete(**padded)).json()["choices"][0]["text"]
    wrong = await api.complete(**padded, nonsense=1)
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "unknown_parameter")
    broken = await api.http.post(
        "/tokenize", content=b'{"prompt": "' + b"x" * 100_000, headers={"content-type": "application/json"}
    )
    assert (broken.status_code, broken.json()["error"]["code"]) == (400, "invalid_json")


def test_every_list_of_a_request_stops_at_its_first_error() -> None:
    """Else a brother of the fields above can be added without anybody noticing what it costs."""
    for model in (CompletionRequest, ChatRequest, TokenizeRequest, DetokenizeRequest):
        for schema in _lists(model.__pydantic_core_schema__):
            assert schema.get("fail_fast") or schema.get("max_length"), schema


def _lists(node: Any) -> list[dict[str, Any]]:
    if isinstance(node, dict):
        own = [node] if node.get("type") == "list" else []
        if node.get("type") == "function-before" and "_check_stop" in str(node.get("function")):
            return []  # checked by hand before pydantic reads it
        return own + [found for key, value in node.items() if key != "serialization" for found in _lists(value)]
    return [found for value in node for found in _lists(value)] if isinstance(node, list | tuple) else []
