"""Messages in Anthropic's form, with an engine whose answers are known: blocks, events, errors, the chat behind them.

If these fail, a coding agent reads thoughts as text, waits for an event that never comes, or cannot read an error.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import httpx
import pytest

from tests.fakes import FakeEngine, hanging, saying
from tests.server.api.test_tools import CALL, NEMOTRON, PLACE, THOUGHT, use
from tests.server.conftest import Api, ApiFactory

TOOLS = [{"name": "look", "description": "Looks.", "input_schema": PLACE}]
THINKING = NEMOTRON.replace("if enable_thinking", "if true")


post = Api.message


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, whose names are those of their payloads."""
    found = []
    for block in answer.text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


def put_together(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The blocks that a client makes of a stream; one block is open at a time."""
    blocks: list[dict[str, Any]] = []
    is_open, arguments = False, ""  # the arguments of a call come in pieces
    for event in events:
        if event["type"] == "content_block_start":
            assert (event["index"], is_open) == (len(blocks), False)
            blocks.append(event["content_block"])
            is_open = True
        elif event["type"] == "content_block_delta":
            assert (event["index"], is_open) == (len(blocks) - 1, True)
            delta = dict(event["delta"])
            if delta.pop("type") == "input_json_delta":
                arguments += delta["partial_json"]
            else:
                [(name, text)] = delta.items()
                blocks[-1][name] += text
        elif event["type"] == "content_block_stop":
            assert is_open
            blocks[-1] |= {"input": json.loads(arguments)} if arguments else {}
            is_open, arguments = False, ""
    assert not is_open
    return blocks


@pytest.mark.anyio
@pytest.mark.parametrize("chunk", [1, 3, 100])
async def test_thoughts_text_and_calls_are_blocks_in_their_order(serve: ApiFactory, chunk: int) -> None:
    async with serve(FakeEngine(saying(THOUGHT + "I look.\n" + CALL, chunk))) as api:
        use(api, THINKING)
        whole = (await post(api, tools=TOOLS)).json()
        thought, text, call = whole["content"]
        digest = hashlib.sha256(b"I have to look.").hexdigest()
        assert thought == {"type": "thinking", "thinking": "I have to look.", "signature": digest}
        assert text == {"type": "text", "text": "I look.", "citations": None}
        assert (call["type"], call["name"], call["input"]) == ("tool_use", "look", {"place": "Oslo"})
        assert (whole["stop_reason"], whole["stop_sequence"]) == ("tool_use", None)
        assert whole["usage"]["output_tokens_details"]["thinking_tokens"] > 0
        events = events_of(await post(api, tools=TOOLS, stream=True))
        assert [event["type"] for event in events[:3]] == ["message_start", "ping", "content_block_start"]
        assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
        assert events[0]["message"]["content"] == []
        assert events[0]["message"]["stop_reason"] is None
        assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
        told = put_together(events)
        assert told[2].pop("id") != call.pop("id"), "ids must not repeat"
        assert told == whole["content"]
        for name in ("input_tokens", "output_tokens"):
            assert events[-2]["usage"][name] == whole["usage"][name]


@pytest.mark.anyio
async def test_thoughts_may_be_left_out(serve: ApiFactory) -> None:
    async with serve(FakeEngine(saying(THOUGHT + "Yes."))) as api:
        use(api, NEMOTRON)
        for thinking, blocks in (
            ({"type": "enabled", "budget_tokens": 1024}, ["thinking", "text"]),
            ({"type": "adaptive", "display": "omitted"}, ["text"]),
        ):
            content = (await post(api, thinking=thinking)).json()["content"]
            assert [block["type"] for block in content] == blocks
            assert content[-1]["text"] == "Yes."
        [block] = (await post(api, thinking={"type": "disabled"})).json()["content"]
        assert block["text"] == THOUGHT + "Yes.", "the template said that there are no thoughts"


@pytest.mark.anyio
async def test_the_end_of_an_answer_is_told(serve: ApiFactory) -> None:
    async with serve() as api:
        ended = (await post(api)).json()
        assert (ended["stop_reason"], ended["stop_sequence"]) == ("end_turn", None)
        stopped = (await post(api, stop_sequences=["zebra", " coin"])).json()
        assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", " coin")
        assert stopped["content"][0]["text"].endswith("found a")
        assert (await post(api, max_tokens=3)).json()["stop_reason"] == "max_tokens"
    async with serve(FakeEngine(saying("word " * 400)), clip_max_tokens=False) as api:
        full = (await post(api, max_tokens=100_000)).json()
        assert full["stop_reason"] == "model_context_window_exceeded"
        assert full["usage"]["input_tokens"] + full["usage"]["output_tokens"] == 256


@pytest.mark.anyio
async def test_an_answer_without_a_word_has_no_block(serve: ApiFactory) -> None:
    async with serve(FakeEngine(saying("", 1))) as api:
        assert (await post(api)).json()["content"] == []
        kinds = [event["type"] for event in events_of(await post(api, stream=True))]
        assert kinds == ["message_start", "ping", "message_delta", "message_stop"]


@pytest.mark.anyio
async def test_the_answer_goes_on_with_what_the_assistant_has_said(serve: ApiFactory) -> None:
    async with serve(FakeEngine(saying(" a coin."))) as api:
        turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "She found"}]
        answer = (await post(api, messages=turns)).json()
        assert answer["content"][0]["text"] == " a coin."
        prompt = api.engine.requests[-1].prompt_token_ids
        model = api.service.model
        assert model is not None
        assert model.tokenizer.decode(prompt).endswith("She found")
        counted = await api.http.post("/v1/messages/count_tokens", json={"messages": turns})
        assert counted.json() == {"input_tokens": len(prompt)}


@pytest.mark.anyio
async def test_errors_are_in_anthropics_form_at_these_paths_alone(serve: ApiFactory) -> None:
    async with serve(api_keys=("key",)) as api:
        for path, body in (("/v1/messages", {}), ("/v1/messages/count_tokens", {}), ("/v1/messages/nowhere", {})):
            error = (await api.http.post(path, json=body)).json()
            assert (error["type"], error["error"]["type"]) == ("error", "authentication_error")
        answer = await api.http.post("/v1/messages", json={}, headers={"x-api-key": "key", "x-request-id": "mine"})
        assert answer.status_code == 400
        assert answer.json() == {
            "type": "error",
            "request_id": "mine",
            "error": {
                "type": "invalid_request_error",
                "message": "Missing required parameter: 'max_tokens'.",
                "param": "max_tokens",
                "code": "missing_required_parameter",
            },
        }
        assert answer.headers["request-id"] == answer.headers["x-request-id"] == "mine"
        headers = {"x-api-key": "key"}
        missing = await api.http.post("/v1/messages/nowhere", json={}, headers=headers)
        assert missing.json()["error"]["type"] == "not_found_error"
        unknown = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 5, "model": "other"}
        assert (await api.http.post("/v1/messages", json=unknown, headers=headers)).status_code == 404
        other = await api.http.post("/v1/messages_of_others", json={}, headers=headers)
        assert set(other.json()) == {"error"}
        assert "request-id" not in other.headers


@pytest.mark.anyio
async def test_a_stream_is_kept_open_by_pings_and_fails_in_anthropics_form(serve: ApiFactory) -> None:
    async with serve(FakeEngine(hanging), sse_keepalive=0.02, request_timeout=0.3) as api:
        *events, last = events_of(await post(api, stream=True))
        assert [event["type"] for event in events].count("ping") > 1
        assert last["error"]["type"] == "timeout_error"
        assert last["request_id"].startswith("req-")


CALLED = {"type": "tool_use", "id": "t1", "name": "look", "input": {"place": "Oslo"}}
GOOD = {"role": "user", "content": "Go."}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [CALLED]}]}, "messages[0]"),
        ({"messages": [GOOD, {"role": "assistant", "content": [CALLED]}]}, "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t9"}]}]},
            "messages[0].content[0].tool_use_id",
        ),
        ({"messages": [{"role": "user", "content": "x" * 100_000}]}, "messages"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{"name": "f", "input_schema": {"type": "array"}}]}, "tools[0].input_schema"),
        ({"tools": [*TOOLS, *TOOLS]}, "tools[1].name"),
        ({"tools": [{"name": f"f{number}", "input_schema": {}} for number in range(1000)]}, "tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "other"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool"}}, "tool_choice"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"stop": ["x"]}, "stop"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"n": 2}, "n"),
        ({"response_format": {"type": "text"}}, "response_format"),
        ({"stream_options": {"include_usage": True}, "stream": True}, "stream_options"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type"),
        ({"output_config": {"effort": "extreme"}}, "output_config.effort"),
        ({"container": "c"}, "container"),
        ({"diagnostics": {}}, "diagnostics"),
        ({"inference_geo": "eu"}, "inference_geo"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"speed": "fast"}, "speed"),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"diffusing": True, "stream": True}, "diffusing"),
        ({"stop_token_ids": [10**6]}, "stop_token_ids"),
        ({"nonsense": 1}, "nonsense"),
    ],
)  # fmt: skip
async def test_what_cannot_be_done_is_refused_by_name(api: Api, fields: dict[str, Any], param: str) -> None:
    answer = await post(api, **fields)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert "function." not in error["message"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": {"user_id": "u"}},
        {"service_tier": "auto"},
        {"speed": "standard"},
        {"context_management": {"edits": []}},
        {"mcp_servers": []},
        {"user_profile_id": "u", "workspace_id": "w"},
        {"cache_control": {"type": "ephemeral"}},
        {"stop_sequences": [], "top_k": 0, "thinking": None, "container": None},
        {"output_config": {"effort": "low"}},
    ],
)
async def test_what_asks_for_nothing_is_accepted(api: Api, fields: dict[str, Any]) -> None:
    assert (await post(api, **fields)).json()["content"] == (await post(api)).json()["content"]
