"""The honest-parameter rule, held against OpenAI's own types: every field works, cannot matter, or is refused by name.

A new version of the `openai` package with a new field fails here until the field is in one of the tables.
"""

from __future__ import annotations

import typing
from typing import Any

import httpx
import pytest
from openai.types import completion_create_params as completion_types
from openai.types import shared_params
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionDeveloperMessageParam,
    ChatCompletionFunctionMessageParam,
    ChatCompletionStreamOptionsParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionToolMessageParam,
    ChatCompletionUserMessageParam,
)
from openai.types.chat import completion_create_params as chat_types

from tests.clients.conftest import QUESTION, STORY
from tests.clients.effects import EFFECTS, Asker
from tests.http_helpers import ask

BODIES: dict[str, dict[str, Any]] = {
    "completions": {"prompt": STORY, "max_tokens": 24, "temperature": 0},
    "chat": {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 24, "temperature": 0},
}

TYPED = {
    "completions": completion_types.CompletionCreateParamsStreaming,
    "chat": chat_types.CompletionCreateParamsStreaming,
}

CANNOT_MATTER: dict[str, dict[str, list[Any]]] = {
    "completions": {"user": ["someone"], "best_of": [1]},
    "chat": {
        "user": ["someone"],
        "metadata": [{"run": "7"}],
        "store": [False],
        "service_tier": ["auto", "default"],
        "prompt_cache_key": ["key"],
        "safety_identifier": ["id"],
        "parallel_tool_calls": [True, False],
        "reasoning_effort": ["none", "high"],
        "verbosity": ["low", "medium", "high"],
        "modalities": [["text"]],
        "tool_choice": ["none", "auto"],
        "function_call": ["none"],
    },
}
"""Values that ask for nothing that could change the text."""

REFUSED: dict[str, dict[str, Any]] = {
    "completions": {"best_of": 3},
    "chat": {
        "store": True,
        "tool_choice": {"type": "function", "function": {"name": "add"}},
        "functions": [{"name": "add"}],
        "function_call": {"name": "add"},
        "modalities": ["text", "audio"],
        "audio": {"voice": "alloy", "format": "wav"},
        "reasoning_effort": "extreme",
        "verbosity": "extreme",
        "web_search_options": {},
        "moderation": {"model": "m"},
        "prompt_cache_options": {"mode": "x"},
        "prompt_cache_retention": "24h",
    },
}
"""Values that ask for something this server does not do."""


def fields_of(kind: Any) -> set[str]:
    return set(typing.get_type_hints(kind))


def refused(answer: httpx.Response, name: str) -> None:
    assert answer.status_code == 400, f"{name} was accepted: {answer.text[:200]}"
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == name
    assert name in error["message"]


@pytest.mark.parametrize(
    ("endpoint", "field"), [(endpoint, field) for endpoint, kind in TYPED.items() for field in sorted(fields_of(kind))]
)
def test_every_field_of_openais_request_types_works_or_is_refused(
    http: httpx.Client, endpoint: str, field: str
) -> None:
    """Nothing a user sets is quietly ignored."""
    covered = False
    body = BODIES[endpoint]
    plain = None
    for value in CANNOT_MATTER[endpoint].get(field, []):
        covered = True
        plain = plain or ask(http, body).json()["choices"]
        answer = ask(http, {**body, field: value})
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"] == plain
    if field in REFUSED[endpoint]:
        covered = True
        refused(ask(http, {**body, field: REFUSED[endpoint][field]}), field)
    if field in EFFECTS:
        covered = True
        EFFECTS[field](Asker(http, endpoint, "auto"))
    assert covered, f"what does '{field}' do? No table knows it."


def test_null_is_the_same_as_not_sent(http: httpx.Client) -> None:
    """SDKs in typed languages send null for every field that was not set."""
    for endpoint, kind in TYPED.items():
        body = BODIES[endpoint]
        unset = {name: None for name in fields_of(kind) if name not in body}
        if endpoint == "completions":
            unset |= dict.fromkeys(("top_k", "min_p", "block_length", "max_denoising_steps", "decoding"))
        plain, nulled = ask(http, body), ask(http, {**body, **unset})
        assert nulled.status_code == 200, nulled.text
        assert nulled.json()["choices"] == plain.json()["choices"]


def test_unknown_fields_are_refused_with_the_nearest_name(http: httpx.Client) -> None:
    for endpoint, body in BODIES.items():
        for name, meant in (("max_token", "max_tokens"), ("treshold", "threshold"), ("top-p", "top_p")):
            answer = ask(http, {**body, name: 1})
            refused(answer, name)
            assert f"'{meant}'" in answer.json()["error"]["message"], endpoint


def test_every_stream_option_works_or_is_refused(http: httpx.Client) -> None:
    known = {"include_usage"}
    for option in fields_of(ChatCompletionStreamOptionsParam) - known:
        answer = ask(http, {**BODIES["chat"], "stream": True, "stream_options": {option: True}})
        refused(answer, f"stream_options.{option}")


_CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}

MESSAGES: dict[str, tuple[Any, dict[str, Any]]] = {
    "user": (ChatCompletionUserMessageParam, {}),
    "system": (ChatCompletionSystemMessageParam, {}),
    "developer": (ChatCompletionDeveloperMessageParam, {}),
    "assistant": (
        ChatCompletionAssistantMessageParam,
        {"refusal": "I will not.", "audio": {"id": "a"}, "function_call": _CALL["function"], "tool_calls": [_CALL]},
    ),
    "tool": (ChatCompletionToolMessageParam, {"tool_call_id": "1"}),
    "function": (ChatCompletionFunctionMessageParam, {}),
}
"""By role: OpenAI's type, and what its further fields may hold."""


@pytest.mark.parametrize("role", MESSAGES)
def test_every_field_of_a_message_is_taken(http: httpx.Client, role: str) -> None:
    kind, accepted = MESSAGES[role]
    assert fields_of(kind) - {*accepted} <= {"role", "content", "name"}, "a new field of messages"
    last = {"role": "user", "content": QUESTION}
    for field, value in accepted.items():
        answer = ask(http, {**BODIES["chat"], "messages": [{"role": role, "content": "x", field: value}, last]})
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "refusal", "video_url"])
def test_parts_that_are_not_text_are_refused(http: httpx.Client, kind: str) -> None:
    """An answer about a picture that the model never saw would be worse than none. No URL is ever fetched."""
    part = {"type": kind, kind: {"url": "http://127.0.0.1:1/x.png"} if kind.endswith("url") else "x"}
    content = [{"type": "text", "text": QUESTION}, part]
    answer = ask(http, {**BODIES["chat"], "messages": [{"role": "user", "content": content}]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages[0].content"
    assert kind in answer.json()["error"]["message"]


def test_every_response_format_of_openais_types_works_or_is_refused(http: httpx.Client) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    formats = {
        shared_params.ResponseFormatText: {"type": "text"},
        shared_params.ResponseFormatJSONObject: {"type": "json_object"},
        shared_params.ResponseFormatJSONSchema: {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    }
    for form in formats.values():
        for mode in ("auto", "diffusion"):
            answer = ask(http, {**BODIES["chat"], "response_format": form, "decoding": mode})
            assert answer.status_code == 200, answer.text
        infill = {**BODIES["completions"], "suffix": "}", "response_format": form}
        if form["type"] == "text":
            assert ask(http, infill).status_code == 200
        else:
            refused(ask(http, infill), "response_format")
    refused(ask(http, {**BODIES["chat"], "response_format": {"type": "grammar"}}), "response_format.type")
