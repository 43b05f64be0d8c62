"""The requests that load generators send, as they stand on the wire, and what each of them reads from the answer.

Shapes of guidellm 0.8, aiperf 0.13, `vllm bench serve` 0.11 and SGLang's bench_serving 0.5.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.clients.conftest import KEY, QUESTION, STORY, SUM, TALE
from tests.http_helpers import ask, delta_of, events

TOKENS = 24

GUIDELLM_COMPLETIONS = {
    "model": "builtin",
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    "max_tokens": TOKENS,
    "stop": None,
    "ignore_eos": True,
    "prompt": STORY,
}
GUIDELLM_CHAT = {
    "model": "builtin",
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    "max_completion_tokens": TOKENS,
    "stop": None,
    "ignore_eos": True,
    "messages": [{"role": "user", "content": [{"type": "text", "text": TALE}]}],
}
AIPERF_COMPLETIONS = {
    "prompt": STORY,
    "model": "builtin",
    "stream": True,
    "max_tokens": TOKENS,
    "ignore_eos": True,
    "min_tokens": TOKENS,
    "stream_options": {"include_usage": True},
}
AIPERF_CHAT = {
    "messages": [
        {"role": "system", "content": "You are helpful."},
        {"role": "user", "content": [{"type": "text", "text": TALE}], "name": "user_1"},
    ],
    "model": "builtin",
    "stream": True,
    "max_completion_tokens": TOKENS,
    "ignore_eos": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
}
VLLM_COMPLETIONS = {
    "model": "builtin",
    "prompt": STORY,
    "temperature": 0.0,
    "repetition_penalty": 1.0,
    "max_tokens": TOKENS,
    "logprobs": None,
    "stream": True,
    "stream_options": {"include_usage": True},
    "ignore_eos": True,
}
VLLM_CHAT = {
    "model": "builtin",
    "messages": [{"role": "user", "content": [{"type": "text", "text": TALE}]}],
    "temperature": 0.0,
    "max_completion_tokens": TOKENS,
    "stream": True,
    "stream_options": {"include_usage": True},
    "ignore_eos": True,
}
SGLANG_COMPLETIONS = {
    "model": "builtin",
    "prompt": STORY,
    "best_of": 1,
    "max_tokens": TOKENS,
    "stream": True,
    "temperature": 0.0,
    "ignore_eos": True,
}
SGLANG_CHAT = {
    "model": "builtin",
    "messages": [{"role": "user", "content": TALE}],
    "max_completion_tokens": TOKENS,
    "stream": True,
    "temperature": 0.0,
    "ignore_eos": True,
}

STREAMED = {
    "guidellm completions": GUIDELLM_COMPLETIONS,
    "guidellm chat": GUIDELLM_CHAT,
    "aiperf completions": AIPERF_COMPLETIONS,
    "aiperf chat": AIPERF_CHAT,
    "vllm bench serve completions": VLLM_COMPLETIONS,
    "vllm bench serve completions, sampled": {**VLLM_COMPLETIONS, "top_p": 0.9, "top_k": 20, "min_p": 0.05,
                                              "temperature": 0.7, "logprobs": 1},
    "vllm bench serve chat": VLLM_CHAT,
    "bench_serving completions": SGLANG_COMPLETIONS,
    "bench_serving completions, log-probabilities": {**SGLANG_COMPLETIONS, "logprobs": 2},
    "bench_serving completions, token ids": {**SGLANG_COMPLETIONS, "prompt": list(range(20, 52))},
    "bench_serving chat": SGLANG_CHAT,
}  # fmt: skip


def without_streaming(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name != "stream_options"} | {"stream": False}


def test_generators_find_the_server_and_its_model(http: httpx.Client, url: str) -> None:
    """guidellm validates with /health, bench_serving with /v1/models; both then take the first model's id."""
    assert httpx.get(f"{url}/health", trust_env=False).status_code == 200
    listed = http.get("/v1/models").json()["data"]
    assert listed[0]["id"] == "builtin"
    assert listed[0]["max_model_len"] == 1024


@pytest.mark.parametrize("name", STREAMED)
def test_a_request_gives_as_many_tokens_as_it_asks_for(http: httpx.Client, name: str) -> None:
    """A run whose answers are shorter than configured measures something else than it says."""
    body = STREAMED[name]
    answer = ask(http, body)
    assert answer.status_code == 200, answer.text
    chunks = events(answer.text)
    texts = [delta_of(choice) for chunk in chunks for choice in chunk["choices"]]
    assert texts[0], "the first chunk stops the clock of the time to first token: it must carry text"
    assert chunks[-2 if "stream_options" in body else -1]["choices"][0]["finish_reason"] == "length"
    whole = ask(http, without_streaming(body)).json()
    assert whole["usage"]["completion_tokens"] == TOKENS
    if "seed" in body or body.get("temperature") == 0:
        choice = whole["choices"][0]
        assert "".join(texts) == (choice["text"] if "text" in choice else choice["message"]["content"])


@pytest.mark.parametrize("name", [name for name in STREAMED if "stream_options" in STREAMED[name]])
def test_usage_counts_what_was_streamed(http: httpx.Client, name: str) -> None:
    """All of them take their token counts from the last usage they see; guidellm and aiperf also from every chunk."""
    body = STREAMED[name]
    chunks = events(ask(http, body).text)
    usages = [chunk["usage"] for chunk in chunks]
    assert chunks[-1]["choices"] == []
    assert usages[-1]["completion_tokens"] == TOKENS
    assert usages[-1]["prompt_tokens"] > 5
    if body["stream_options"].get("continuous_usage_stats"):
        counts = [usage["completion_tokens"] for usage in usages]
        assert counts == sorted(counts)
        assert counts[0] >= 1
    else:
        assert usages[:-1] == [None] * (len(usages) - 1)


@pytest.mark.parametrize("name", [name for name in STREAMED if "bench_serving" in name])
def test_every_chunk_of_a_plain_stream_has_a_choice(http: httpx.Client, name: str) -> None:
    """bench_serving looks into choices[0] of every chunk when it did not ask for usage."""
    chunks = events(ask(http, STREAMED[name]).text)
    assert all(len(chunk["choices"]) == 1 for chunk in chunks)


def lines(response: httpx.Response) -> Iterator[str]:
    """Lines as clients on httpx get them: split at everything Python takes for the end of a line."""
    return iter(response.text.splitlines())


def test_line_separators_in_text_do_not_tear_a_chunk_apart(http: httpx.Client) -> None:
    """JSON allows U+2028 and similar characters as they are. Clients that read lines as Python does, such as guidellm,
    would see half an object and count the request as failed."""
    prompt = "one\u2028two\u2029three\u0085four"
    answer = ask(http, {"prompt": prompt, "echo": True, "stream": True, "max_tokens": 2})
    data = [line.removeprefix("data: ") for line in lines(answer) if line.startswith("data: {")]
    assert json.loads(data[0])["choices"][0]["text"].startswith(prompt)


def test_a_vllm_style_request_id_comes_back(http: httpx.Client) -> None:
    header = {"x-request-id": "benchmark-serving0"}
    answer = http.post("/v1/completions", json=VLLM_COMPLETIONS, headers=header)
    assert answer.headers["x-request-id"] == "benchmark-serving0"


def test_bodies_sent_as_text_with_a_charset_are_read(url: str) -> None:
    """bench_serving labels its JSON with a charset."""
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json; charset=utf-8"}
    body = json.dumps({"prompt": SUM, "max_tokens": 1}).encode()
    assert httpx.post(f"{url}/v1/completions", content=body, headers=headers, trust_env=False).status_code == 200


def test_questions_with_tools_are_answered_by_calls(http: httpx.Client) -> None:
    """aiperf and guidellm can send tool definitions: an answer that ignored them would be measured as one."""
    parameters = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]}
    tools = [{"type": "function", "function": {"name": "add", "parameters": parameters}}]
    messages = [{"role": "user", "content": QUESTION}]
    answer = ask(http, {"messages": messages, "tools": tools, "tool_choice": "required", "max_tokens": 100})
    assert answer.status_code == 200
    [call] = answer.json()["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "add"
