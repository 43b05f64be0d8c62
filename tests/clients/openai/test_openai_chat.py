"""OpenAI's Python SDK on /v1/chat/completions and /v1/models."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.clients.conftest import MODES, QUESTION, TALE


def create(sdk: openai.OpenAI, content: Any = QUESTION, **fields: Any) -> ChatCompletion:
    answer = sdk.chat.completions.create(**_request(content, fields))
    assert isinstance(answer, ChatCompletion)
    return answer


def stream(sdk: openai.OpenAI, content: Any = QUESTION, **fields: Any) -> list[ChatCompletionChunk]:
    with sdk.chat.completions.create(**_request(content, fields), stream=True) as chunks:
        return list(chunks)


def _request(content: Any, fields: dict[str, Any]) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}]
    return {"model": "builtin", "messages": messages, "temperature": 0, "max_tokens": 80, **fields}


def text(answer: ChatCompletion, index: int = 0) -> str:
    content = answer.choices[index].message.content
    assert content is not None
    return content


def test_an_answer_has_every_part_the_sdk_types(sdk: openai.OpenAI) -> None:
    answer = create(sdk)
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert "112" in text(answer)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens is not None


@pytest.mark.parametrize("mode", MODES)
def test_a_stream_adds_up_to_the_answer_in_every_mode(sdk: openai.OpenAI, mode: str) -> None:
    fields: dict[str, Any] = {"temperature": 1, "seed": 4, "extra_body": {"decoding": mode}}
    whole = create(sdk, TALE, **fields)
    chunks = stream(sdk, TALE, **fields)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == text(whole)
    assert [delta.role for delta in deltas].count("assistant") == 1
    assert deltas[0].role == "assistant"
    assert deltas[0].content, "the role comes with the first text, or time to first token is not honest"
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks), "nobody asked for usage"


def test_usage_comes_once_and_last_when_asked_for(sdk: openai.OpenAI) -> None:
    chunks = stream(sdk, stream_options={"include_usage": True})
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices == []


def test_the_sdks_stream_helper_puts_the_answer_together(sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.stream(
        model="builtin", messages=_request(QUESTION, {})["messages"], temperature=0
    ) as run:
        pieces = [event.delta for event in run if event.type == "content.delta"]
        final = run.get_final_completion()
    assert "".join(pieces) == final.choices[0].message.content == text(create(sdk))


def test_n_answers_differ_and_come_back_by_index(sdk: openai.OpenAI) -> None:
    answer = create(sdk, TALE, n=3, temperature=1, seed=2, max_tokens=24)
    texts = [text(answer, index) for index in range(3)]
    assert len(set(texts)) == 3
    streamed = ["", "", ""]
    for chunk in stream(sdk, TALE, n=3, temperature=1, seed=2, max_tokens=24):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


@pytest.mark.parametrize("mode", MODES)
def test_logprobs_spell_the_answer_in_bytes(sdk: openai.OpenAI, mode: str) -> None:
    fields: dict[str, Any] = {"logprobs": True, "top_logprobs": 2, "extra_body": {"decoding": mode}}
    answer = create(sdk, **fields)
    scores = answer.choices[0].logprobs
    assert scores is not None
    assert scores.content
    assert b"".join(bytes(token.bytes or []) for token in scores.content).decode() == text(answer)
    assert all(len(token.top_logprobs) == 2 for token in scores.content)
    if mode != "diffusion":  # greedy: what was chosen was the likeliest
        assert all(token.token == token.top_logprobs[0].token for token in scores.content)
    streamed = [chunk.choices[0].logprobs for chunk in stream(sdk, **fields)]
    tokens = [token.token for part in streamed if part for token in part.content or []]
    assert tokens == [token.token for token in scores.content]


def test_system_messages_text_parts_and_turns_change_the_prompt(sdk: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": QUESTION}]
    assert text(create(sdk, parts)) == text(create(sdk))
    turns: list[Any] = [
        {"role": "system", "content": "Answer in JSON."},
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": QUESTION},
    ]
    longer = create(sdk, messages=turns)
    assert longer.usage is not None
    assert longer.usage.prompt_tokens > create(sdk).usage.prompt_tokens + 10  # type: ignore[union-attr]


def test_control_tokens_in_a_message_stay_text(sdk: openai.OpenAI) -> None:
    spelled = create(sdk, "<|assistant|><|eos|><|mask|>", max_tokens=1)
    plain = create(sdk, "", max_tokens=1)
    assert spelled.usage is not None
    assert plain.usage is not None
    assert spelled.usage.prompt_tokens > plain.usage.prompt_tokens + 3, "a control token would be one token"


def test_stop_and_both_token_limits(sdk: openai.OpenAI) -> None:
    whole = text(create(sdk))
    cut = create(sdk, stop="The answer")
    assert text(cut) == whole[: whole.index("The answer")]
    assert cut.choices[0].finish_reason == "stop"
    for limit in ("max_tokens", "max_completion_tokens"):
        fields = {"max_tokens": openai.omit, limit: 7}
        answer = create(sdk, **fields)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 7
        assert answer.choices[0].finish_reason == "length"


def test_json_comes_as_json_when_asked_for(sdk: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"item": {"type": "string", "maxLength": 12}, "count": {"type": "integer"}},
        "required": ["item", "count"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "stock", "schema": schema, "strict": True}}
    answer = create(sdk, "Turn this list into JSON: 25 apples.", response_format=form, max_tokens=120)
    value = json.loads(text(answer))
    assert set(value) == {"item", "count"}
    assert isinstance(value["count"], int)
    value = json.loads(text(create(sdk, "Turn this into JSON: 25 apples.", response_format={"type": "json_object"})))
    assert isinstance(value, dict)


def test_models_are_listed_and_found_by_name(sdk: openai.OpenAI) -> None:
    names = [model.id for model in sdk.models.list()]
    assert names == ["builtin", "builtin:ar", "builtin:diffusion", "builtin:speculative"]
    for name in names:
        model = sdk.models.retrieve(name)
        assert model.id == name
        assert model.object == "model"
        assert model.to_dict()["max_model_len"] == 1024
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("gpt-4o")


def test_an_alias_chooses_the_mode(sdk: openai.OpenAI) -> None:
    for mode in ("ar", "speculative", "diffusion"):
        answer = create(sdk, model=f"builtin:{mode}")
        assert answer.model == f"builtin:{mode}"
        assert answer.usage is not None
        assert answer.usage.to_dict()["diffusion"]["decoding"] == mode  # type: ignore[index]


def test_raw_and_streaming_responses_of_the_sdk(sdk: openai.OpenAI) -> None:
    raw = sdk.chat.completions.with_raw_response.create(**_request(QUESTION, {}), extra_headers={"X-Request-Id": "abc"})
    assert raw.headers["x-request-id"] == "abc"
    assert raw.parse().choices[0].message.content
    with sdk.chat.completions.with_streaming_response.create(**_request(QUESTION, {}), stream=True) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = list(response.iter_lines())
    assert lines[-2:] == ["data: [DONE]", ""]


@pytest.mark.parametrize("form", ["object", "dump", "set", "json"])
def test_a_conversation_goes_on_with_the_answer_it_got(sdk: openai.OpenAI, form: str) -> None:
    """How every example does it: append the message of the answer and ask again."""
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    for _ in range(3):
        message = (
            sdk.chat.completions.create(model="builtin", messages=messages, temperature=0, max_tokens=80)
            .choices[0]
            .message
        )
        messages += [
            {
                "object": message,
                "dump": message.model_dump(),
                "set": message.model_dump(exclude_unset=True),
                "json": json.loads(message.model_dump_json()),
            }[form],
            {"role": "user", "content": QUESTION},
        ]
    assert "112" in str(messages[1])


def test_a_parsed_answer_goes_back_too(sdk: openai.OpenAI) -> None:
    message = sdk.chat.completions.parse(**_request(QUESTION, {})).choices[0].message
    messages: list[Any] = [{"role": "user", "content": QUESTION}, message, {"role": "user", "content": QUESTION}]
    assert sdk.chat.completions.create(model="builtin", messages=messages, max_tokens=4).choices
    dumped = [messages[0], message.model_dump(), messages[2]]
    assert sdk.chat.completions.create(model="builtin", messages=dumped, max_tokens=4).choices


def test_agents_may_send_system_messages_anywhere(sdk: openai.OpenAI) -> None:
    system, question = {"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}
    messages: list[Any] = [system, question, {**system, "role": "developer"}]
    assert sdk.chat.completions.create(model="builtin", messages=messages, max_tokens=4).choices
