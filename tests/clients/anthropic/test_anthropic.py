"""Anthropic's Python SDK. If these fail, coding agents and whatever else speaks its form cannot use this server."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from tests.clients.conftest import KEY, QUESTION, TALE

anthropic = pytest.importorskip("anthropic", reason="needs the extra 'dev'")

MESSAGES = [{"role": "user", "content": QUESTION}]
BODY: dict[str, Any] = {"model": "builtin", "messages": MESSAGES, "max_tokens": 120, "temperature": 0}
OURS = {"temperature": 0}
"""What the SDK's own functions do not know goes with their `extra_body`."""
ASK: dict[str, Any] = {"model": "builtin", "messages": MESSAGES, "max_tokens": 120, "extra_body": OURS}
SCHEMA = {
    "type": "object",
    "properties": {"first": {"type": "integer", "minimum": 0, "maximum": 999}, "second": {"type": "integer"}},
    "required": ["first", "second"],
}
TOOL: dict[str, Any] = {"name": "Sum", "description": "Adds two numbers.", "input_schema": SCHEMA}
CALL: dict[str, Any] = {"tools": [TOOL], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}}

WITHOUT_EFFECT = {"metadata", "service_tier", "cache_control", "user_profile_id", "workspace_id"}
REFUSED = {"container", "diagnostics", "inference_geo", "speed"}
"""Beyond their neutral values."""
WORK = {"max_tokens", "messages", "model", "output_config", "stop_sequences", "stream", "system", "thinking",
        "tool_choice", "tools"}  # fmt: skip


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Any]:
    """The SDK as people set it up: a base URL and a key, which it sends as x-api-key."""
    with anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


def create(client: Any, ours: dict[str, Any] = OURS, **fields: Any) -> Any:
    return client.messages.create(**{**ASK, "extra_body": {**OURS, **ours}, **fields})


def chat(http: Any, **fields: Any) -> Any:
    answer = http.post("/v1/chat/completions", json={**BODY, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_an_answer_is_that_of_a_chat(client: Any, http: Any) -> None:
    answer = create(client, system="Be brief.")
    messages = [{"role": "system", "content": "Be brief."}, *MESSAGES]
    other = chat(http, messages=messages)
    [block] = answer.content
    assert (block.type, block.text) == ("text", other["choices"][0]["message"]["content"])
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", "builtin")
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    assert answer.id.startswith("msg_")
    assert answer.usage.output_tokens == other["usage"]["completion_tokens"]
    assert answer.usage.input_tokens + answer.usage.cache_read_input_tokens == other["usage"]["prompt_tokens"]
    assert answer._request_id


def test_streams_add_up(client: Any) -> None:
    text = create(client).content[0].text
    with client.messages.stream(**ASK) as stream:
        assert "".join(stream.text_stream) == text
        whole = stream.get_final_message()
    assert whole.content[0].text == text
    assert whole.stop_reason == "end_turn"
    assert whole.usage.output_tokens == create(client).usage.output_tokens
    kinds = [event.type for event in create(client, stream=True)]
    assert kinds[:2] == ["message_start", "content_block_start"], "the SDK leaves pings out"
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_a_tool_is_called_and_its_result_answered(client: Any) -> None:
    """An agent's loop."""
    answer = create(client, **CALL)
    [call] = answer.content
    assert (answer.stop_reason, call.type, call.name) == ("tool_use", "tool_use", "Sum")
    assert set(call.input) == {"first", "second"}
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "112"}
    turns = [*MESSAGES, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    assert create(client, messages=turns, tools=[TOOL]).content
    named = create(client, tools=[TOOL], tool_choice={"type": "tool", "name": "Sum"})
    assert {block.name for block in named.content if block.type == "tool_use"} == {"Sum"}
    none = create(client, tools=[TOOL], tool_choice={"type": "none"})
    assert none.content[0].text == create(client).content[0].text


def test_a_streamed_call_adds_up(client: Any) -> None:
    with client.messages.stream(**ASK, **CALL) as stream:
        told = [event.partial_json for event in stream if event.type == "input_json"]
        [call] = stream.get_final_message().content
    assert told
    assert call.input == create(client, **CALL).content[0].input
    assert set(call.input) == {"first", "second"}


def test_json_of_a_schema(client: Any) -> None:
    form = {"format": {"type": "json_schema", "schema": {**SCHEMA, "additionalProperties": False}}}
    assert set(json.loads(create(client, output_config=form).content[0].text)) == {"first", "second"}


def test_stop_sequences_and_limits_are_told(client: Any) -> None:
    whole = create(client).content[0].text
    stopped = create(client, stop_sequences=[whole[20:24]])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", whole[20:24])
    assert whole.startswith(stopped.content[0].text)
    assert create(client, max_tokens=3).stop_reason == "max_tokens"
    assert create(client, max_tokens=100_000).stop_reason == "end_turn", "agents ask for more than a context holds"


def test_what_the_assistant_said_is_gone_on_with(client: Any) -> None:
    turns = [*MESSAGES, {"role": "assistant", "content": "Add the tens:"}]
    assert create(client, messages=turns).content[0].text.startswith(" 80 + 20")


def test_tokens_are_counted_as_they_are_generated_from(client: Any) -> None:
    fields = {"messages": MESSAGES, "system": [{"type": "text", "text": "Be brief."}], "tools": [TOOL]}
    counted = client.messages.count_tokens(model="builtin", **fields)
    usage = create(client, **fields).usage
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens
    assert client.messages.count_tokens(model="builtin", messages=MESSAGES).input_tokens < counted.input_tokens


def test_decoding_fields_work(client: Any) -> None:
    texts = set()
    for mode in ("ar", "speculative", "auto"):
        answer = create(client, {"temperature": 0.8, "top_p": 0.9, "top_k": 40, "decoding": mode, "seed": 3})
        assert (answer.usage.diffusion["decoding"], answer.usage.diffusion["seed"]) == (mode, 3)
        texts.add(answer.content[0].text)
    assert len(texts) == 1
    tale = [{"role": "user", "content": TALE}]
    few, many = (
        create(client, {"decoding": "diffusion", "threshold": threshold}, messages=tale) for threshold in (0.3, 1.0)
    )
    assert few.usage.diffusion["passes"] < many.usage.diffusion["passes"]


def test_errors_are_the_sdks_own(client: Any, url: str) -> None:
    with pytest.raises(anthropic.BadRequestError) as refused:
        create(client, tools=[{"type": "web_search_20250305", "name": "web_search"}])
    assert refused.value.body["error"]["type"] == "invalid_request_error"
    with pytest.raises(anthropic.NotFoundError):
        create(client, model="other")
    with anthropic.Anthropic(base_url=url, api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(anthropic.AuthenticationError):
            stranger.messages.create(**ASK)
        with pytest.raises(anthropic.AuthenticationError):
            stranger.messages.count_tokens(model="builtin", messages=MESSAGES)
    with anthropic.Anthropic(base_url=url, auth_token=KEY, api_key=None, max_retries=0) as bearer:
        assert bearer.messages.create(**ASK).content


def test_every_field_of_anthropics_request_type_works_or_is_refused(client: Any) -> None:
    """A new version of the package with a new field fails here until the field is in one of the tables."""
    from anthropic.types.message_create_params import MessageCreateParamsStreaming

    assert set(typing.get_type_hints(MessageCreateParamsStreaming)) == WORK | REFUSED | WITHOUT_EFFECT
    plain = create(client).content
    values: dict[str, Any] = {"metadata": {"user_id": "u"}, "cache_control": {"type": "ephemeral"}}
    for field in WITHOUT_EFFECT:
        assert create(client, {field: values.get(field, "auto")}).content == plain, field
    for field in REFUSED:
        with pytest.raises(anthropic.BadRequestError) as refused:
            create(client, {field: {"strange": "value"}})
        assert refused.value.body["error"]["param"] == field
