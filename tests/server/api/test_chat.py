"""POST /v1/chat/completions, answers that are not streamed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes import INFO, TEXT
from tests.server.conftest import Api

pytestmark = pytest.mark.anyio


async def test_the_answer_has_openais_shape(api: Api) -> None:
    answer = (await api.chat()).json()
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": TEXT, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ]


async def test_an_answer_may_fill_what_is_left_of_the_context(api: Api) -> None:
    await api.chat()
    request = api.engine.requests[0]
    assert request.max_tokens == INFO.max_model_len - len(request.prompt_token_ids)


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_both_names_of_the_limit_work(api: Api, field: str) -> None:
    answer = (await api.chat(**{field: 5})).json()
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_both_names_together_must_agree(api: Api) -> None:
    assert (await api.chat(max_tokens=5, max_completion_tokens=5)).status_code == 200
    assert (await api.chat(max_tokens=5, max_completion_tokens=6)).status_code == 400


@pytest.mark.parametrize(
    "content",
    ["Hello", [{"type": "text", "text": "Hello"}], [{"type": "text", "text": "He"}, {"type": "text", "text": "llo"}]],
)
async def test_content_may_be_text_or_text_parts(api: Api, content: Any) -> None:
    assert (await api.chat(messages=[{"role": "user", "content": content}])).status_code == 200


async def test_developer_messages_are_system_messages(api: Api) -> None:
    for role in ("system", "developer"):
        await api.chat(messages=[{"role": role, "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    first, second = api.engine.requests
    assert first.prompt_token_ids == second.prompt_token_ids
    assert first.prompt_token_ids[:2] == [1, 3]


async def test_log_probabilities_carry_tokens_and_bytes(api: Api) -> None:
    choice = (await api.chat(logprobs=True, top_logprobs=3, max_tokens=6)).json()["choices"][0]
    content = choice["logprobs"]["content"]
    assert b"".join(bytes(token["bytes"]) for token in content).decode() == choice["message"]["content"]
    assert all(len(token["top_logprobs"]) == 3 for token in content)
    assert set(content[0]["top_logprobs"][0]) == {"token", "logprob", "bytes"}


async def test_n_answers_have_n_seeds(api: Api) -> None:
    answer = (await api.chat(n=3, seed=1)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert len({request.sampling.seed for request in api.engine.requests}) == 3
    assert api.engine.requests[0].sampling.seed == 1


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("Hello", "messages"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "narrator", "content": "x"}], "messages[0].role"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}],
            "messages[0].content",
        ),
        ([{"role": "user", "content": "x", "contents": 1}], "messages[0].contents"),
        ([{"role": "user", "content": "x", "Role": "system"}], "messages[0].Role"),
        ([{"role": "assistant", "content": "x", "prefix": True}], "messages[0].prefix"),
        ([{"role": "user", "content": "x", "images": ["aGk="]}], "messages[0].images"),
        ([{"role": "user", "content": "x", "name": ""}], "messages[0].name"),
        ([{"role": "user", "content": "x", "name": "n" * 257}], "messages[0].name"),
        ([{"role": "user", "content": "x", "tool_calls": []}], "messages[0].tool_calls"),
        ([{"role": "user", "content": "x", "refusal": "No."}], "messages[0].refusal"),
        ([{"role": "assistant", "content": "x", "tool_call_id": "1"}], "messages[0].tool_call_id"),
        ([{"role": "assistant", "audio": {"id": "a"}}], "messages[0].content"),
        ([{"role": "assistant", "tool_calls": [{"type": "function"}]}], "messages[0].tool_calls[0].function"),
        ([{"role": "assistant", "tool_calls": [{"type": "custom"}]}], "messages[0].tool_calls[0].custom"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": [{"type": "refusal", "refusal": "No."}]}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "text", "text": 5}]}], "messages[0].content[0].text"),
    ],
)
async def test_messages_at_fault_are_named(api: Api, messages: Any, param: str) -> None:
    response = await api.chat(messages=messages)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


async def test_a_chat_too_long_for_the_context_says_the_numbers(api: Api) -> None:
    response = await api.chat(messages=[{"role": "user", "content": "word " * 400}])
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["code"] == "context_length_exceeded"
    assert "256" in error["message"]


async def test_a_chats_prompt_begins_with_bos_once(api: Api) -> None:
    """The template may have written it; where it has not, `add_special_tokens` puts it there."""
    plain, added = [
        (await api.chat(add_special_tokens=added, return_token_ids=True)).json()["prompt_token_ids"]
        for added in (False, True)
    ]
    assert added == [1, *(plain[1:] if plain[0] == 1 else plain)]
    assert added.count(1) == 1


async def test_a_prompt_ends_as_it_was_asked_to(api: Api) -> None:
    """A message is continued, or the turn is left closed; /tokenize shows the same tokens."""
    asked: list[dict[str, bool]] = [
        {}, {"add_generation_prompt": False}, {"continue_final_message": True},
        {"continue_final_message": True, "add_generation_prompt": False},
    ]  # fmt: skip
    prompts = []
    for fields in asked:
        answer = (await api.chat(**fields, return_token_ids=True)).json()
        body = {"messages": [{"role": "user", "content": "Hello"}], "return_token_strs": True, **fields}
        told = (await api.http.post("/tokenize", json=body)).json()
        assert answer["prompt_token_ids"] == told["tokens"]
        assert len(told["token_strs"]) == told["count"]
        prompts.append(told["tokens"])
    opened, closed, continued, same = prompts
    assert opened[:-1] == closed == continued == same
    for send in (api.chat, lambda **fields: api.http.post("/tokenize", json={**body, **fields})):
        refused = await send(continue_final_message=True, add_generation_prompt=True)
        assert refused.json()["error"]["param"] == "continue_final_message"
    refused = await api.http.post("/tokenize", json={"prompt": "x", "continue_final_message": True})
    assert refused.status_code == 400
