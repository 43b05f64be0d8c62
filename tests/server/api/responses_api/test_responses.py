"""Responses with an engine whose answers are known: reasoning, calls, the store and its bound.

If these fail, an agent reads reasoning as text, or the server keeps conversations without limit or under a wrong id.
"""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from server.api.responses_api.items import InputItem, to_messages
from server.api.responses_api.store import ResponseStore, StoredResponse
from tests.fakes import FakeEngine, saying
from tests.server.api.test_tools import CALL, NEMOTRON, PLACE, THOUGHT, use
from tests.server.conftest import ApiFactory

pytestmark = pytest.mark.anyio

TOOLS = [{"type": "function", "name": "look", "description": "Looks.", "parameters": PLACE}]
THINKING = NEMOTRON.replace("if enable_thinking", "if true")


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, whose names are those of their payloads."""
    events = []
    for block in answer.text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


@pytest.mark.parametrize("chunk", [1, 3, 100])
async def test_reasoning_text_and_calls_are_items_in_their_order(serve: ApiFactory, chunk: int) -> None:
    async with serve(FakeEngine(saying(THOUGHT + "I look.\n" + CALL, chunk))) as api:
        use(api, THINKING)
        whole = (await api.respond(max_output_tokens=120, tools=TOOLS)).json()
        thought, message, call = whole["output"]
        assert thought["content"] == [{"type": "reasoning_text", "text": "I have to look."}]
        assert message["content"][0]["text"] == "I look."
        assert (call["name"], json.loads(call["arguments"])) == ("look", {"place": "Oslo"})
        assert whole["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
        events = events_of(await api.respond(max_output_tokens=120, tools=TOOLS, stream=True))
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert events[0]["response"]["output"] == events[1]["response"]["output"] == []
        done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
        ids = {item.pop("id") for item in done}
        assert ids == {item["id"] for item in events[-1]["response"]["output"]}
        for item in (*whole["output"], *done):
            item.pop("id", None)
            item.pop("call_id", None)
        assert done == whole["output"]
        for kind, field, text in (("reasoning_text", "delta", "I have to look."), ("output_text", "delta", "I look.")):
            told = [event[field] for event in events if event["type"] == f"response.{kind}.delta"]
            assert "".join(told) == text


async def test_an_answer_without_a_word_is_an_empty_message(serve: ApiFactory) -> None:
    async with serve(FakeEngine(saying("", 1))) as api:
        for answer in ((await api.respond()).json(), events_of(await api.respond(stream=True))[-1]["response"]):
            [message] = answer["output"]
            assert message["content"] == [{"type": "output_text", "text": "", "annotations": [], "logprobs": []}]


async def test_a_server_that_stores_nothing_says_so(serve: ApiFactory) -> None:
    async with serve(max_stored_bytes=0) as api:
        error = (await api.respond(store=True)).json()["error"]
        assert error["param"] == "store"
        assert (await api.respond()).status_code == 200


async def test_the_store_forgets_the_oldest(serve: ApiFactory) -> None:
    async with serve(max_stored_bytes=4000) as api:
        ids = [(await api.respond(store=True)).json()["id"] for _ in range(8)]
        found = [(await api.http.get(f"/v1/responses/{name}")).status_code for name in ids]
        assert found == sorted(found, reverse=True)
        assert {200, 404} == set(found)


def test_the_store_counts_what_it_holds() -> None:
    messages = tuple(to_messages("x" * 100))
    one = StoredResponse(b"{}", messages)
    store = ResponseStore(one.num_bytes * 2)
    for name in "abc":
        store.keep(name, one)
    assert [store.get(name) is not None for name in "abc"] == [False, True, True]
    assert store.forget("b")
    assert not store.forget("b")
    store.keep("d", one)
    assert len(store) == 2
    store.keep("huge", StoredResponse(b"x" * 1000, messages))
    assert len(store) == 0


def test_one_turn_of_the_assistant_is_one_message() -> None:
    """Templates write an assistant's turn as one: text and calls apart would be two."""
    items: list[dict[str, Any]] = [
        {"role": "user", "content": "Go."},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
        {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"},
        {"type": "function_call", "call_id": "2", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "a"},
        {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "b"}]},
        {"type": "message", "role": "assistant", "content": "Done."},
        {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "No more."}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "left over"}]},
    ]
    messages = [message.for_template() for message in to_messages([InputItem(**item) for item in items])]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool", "assistant", "assistant"]
    assert (messages[1]["content"], messages[1]["reasoning_content"]) == ("I look.", "Hm.")
    assert [call["id"] for call in messages[1]["tool_calls"]] == ["1", "2"]
    assert [message["content"] for message in messages[2:]] == ["a", "b", "Done.", "No more."]


def test_text_in_several_parts_stays_in_parts() -> None:
    """Clients that attach files send several; they were answered with a 500."""
    parts = [{"type": "input_text", "text": text} for text in ("a", "b")]
    [message] = to_messages([InputItem(role="user", content=parts)])  # type: ignore[arg-type]
    assert [part["text"] for part in message.for_template()["content"]] == ["a", "b"]
