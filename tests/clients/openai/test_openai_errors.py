"""What goes wrong reaches users of the OpenAI SDK as its own exceptions, and is retried only where that may help."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest

from server.child_server import MODULE
from tests.clients.conftest import FLAGS, KEY, QUESTION, STORY, SUM
from tests.http_helpers import wait_for
from tests.server.processes import ServerProcess
from tests.server.processes import server as start_server

MESSAGES: Any = [{"role": "user", "content": QUESTION}]


@contextmanager
def counting(url: str, retries: int, **options: Any) -> Iterator[tuple[openai.OpenAI, list[httpx.Response]]]:
    """An SDK client with retries, and the responses it has had."""
    responses: list[httpx.Response] = []
    hooks: dict[str, list[Any]] = {"response": [responses.append]}
    with (
        openai.DefaultHttpxClient(event_hooks=hooks, trust_env=False) as transport,
        openai.OpenAI(
            base_url=f"{url}/v1", http_client=transport, max_retries=retries, **{"api_key": KEY, **options}
        ) as client,
    ):
        yield client, responses


REFUSALS: list[tuple[dict[str, Any], type[openai.APIStatusError], str | None, str | None]] = [
    ({"messages": [{"role": "user", "content": "owl " * 2000}]}, openai.BadRequestError, "messages", None),
    ({"temperature": 3}, openai.BadRequestError, "temperature", "invalid_value"),
    ({"extra_body": {"temprature": 1}}, openai.BadRequestError, "temprature", "unknown_parameter"),
    (
        {"extra_body": {"threshold": 0.5, "decoding": "ar"}},
        openai.BadRequestError,
        "threshold",
        "unsupported_parameter",
    ),
    ({"model": "builtin:ar", "extra_body": {"decoding": "diffusion"}}, openai.BadRequestError, "decoding", None),
    ({"tools": [{"type": "function", "function": {"name": "f"}}] * 129}, openai.BadRequestError, "tools", None),
    ({"messages": []}, openai.BadRequestError, "messages", None),
    ({"model": "gpt-4o"}, openai.NotFoundError, "model", "model_not_found"),
]


@pytest.mark.parametrize(("fields", "kind", "param", "code"), REFUSALS)
@pytest.mark.parametrize("stream", [False, True])
def test_what_can_never_work_is_one_clear_exception_and_no_retry(
    url: str,
    fields: dict[str, Any],
    kind: type[openai.APIStatusError],
    param: str | None,
    code: str | None,
    stream: bool,
) -> None:
    with counting(url, retries=3) as (client, responses), pytest.raises(kind) as caught:
        client.chat.completions.create(**{"model": "builtin", "messages": MESSAGES, "stream": stream, **fields})
    error = caught.value
    assert error.param == param
    assert code is None or error.code == code
    assert error.type == "invalid_request_error"
    assert param is not None
    assert param in error.message
    assert error.request_id == responses[0].headers["x-request-id"]
    assert len(responses) == 1, "sending it again cannot help"
    assert responses[0].headers["x-should-retry"] == "false"


def test_a_misspelled_field_is_answered_with_the_nearest_name(url: str) -> None:
    with counting(url, retries=0) as (client, _), pytest.raises(openai.BadRequestError, match="'temperature'"):
        client.completions.create(model="builtin", prompt=SUM, extra_body={"temprature": 1})


@pytest.mark.parametrize("key", ["wrong", "test-ke", "test-key2"])
def test_a_wrong_key_is_an_authentication_error(url: str, key: str) -> None:
    with counting(url, retries=3, api_key=key) as (client, responses):
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
        with pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(model="builtin", messages=MESSAGES)
    assert len(responses) == 2


def test_a_context_overflow_says_the_numbers(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.completions.create(model="builtin", prompt=[300] * 2000, max_tokens=20)
    assert caught.value.code == "context_length_exceeded"
    assert "1024" in caught.value.message
    assert "2000 in the prompt" in caught.value.message


def test_more_tokens_than_the_context_leaves_are_as_many_as_it_leaves(sdk: openai.OpenAI) -> None:
    """Clients set a model's largest answer once and for all; vLLM answers them, too."""
    answer = sdk.completions.create(model="builtin", prompt=[300] * 1000, max_tokens=2000, temperature=0)
    assert answer.usage is not None
    assert answer.usage.total_tokens <= 1024


@pytest.fixture(scope="module")
def small() -> Iterator[ServerProcess]:
    """A server that takes one request at a time and queues none. Not ready yet when it is handed over."""
    flags = (*FLAGS, "--max-running", "1", "--max-queued-requests", "0")
    with start_server([*MODULE], *flags, ready=False) as process:
        wait_for("an answer", lambda: bool(httpx.get(f"{process.url}/health", trust_env=False).status_code))
        yield process


def test_while_the_model_loads_clients_are_told_to_come_back(small: ServerProcess) -> None:
    with counting(small.url, retries=0) as (client, responses):
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="builtin", messages=MESSAGES)
        with pytest.raises(openai.InternalServerError):
            client.models.list()
    assert caught.value.status_code == 503
    assert caught.value.code == "model_loading"
    for response in responses:
        assert int(response.headers["retry-after"]) > 0
        assert response.headers["x-should-retry"] == "true"
    assert httpx.get(f"{small.url}/ready", trust_env=False).status_code == 503


def test_when_the_queue_is_full_the_sdk_waits_and_succeeds(small: ServerProcess) -> None:
    small.wait_until_ready()
    with counting(small.url, retries=0) as (client, _):
        for _ in range(5):  # answers from whose rate the server tells how long to wait
            client.completions.create(model="builtin", prompt=SUM, max_tokens=1)
        busy = client.completions.create(
            model="builtin:ar", prompt=STORY, stream=True, max_tokens=900, extra_body={"ignore_eos": True}
        )
        next(iter(busy))
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(model="builtin", prompt=STORY)
        assert caught.value.code == "queue_full"
        wait = int(caught.value.response.headers["retry-after"])
        assert 1 <= wait <= 5
        with counting(small.url, retries=1) as (patient, responses):
            threading.Timer(wait / 2, busy.close).start()
            begun = time.monotonic()
            answer = patient.completions.create(model="builtin", prompt=SUM, temperature=0, max_tokens=80)
    assert "112" in answer.choices[0].text
    assert [response.status_code for response in responses] == [429, 200]
    assert time.monotonic() - begun >= 1, "the SDK came back sooner than it was told to"


def test_a_client_that_leaves_makes_room_for_the_next(small: ServerProcess) -> None:
    small.wait_until_ready()
    with counting(small.url, retries=0) as (client, _):
        for _ in range(3):
            stream = client.completions.create(
                model="builtin:ar", prompt=STORY, stream=True, max_tokens=900, extra_body={"ignore_eos": True}
            )
            next(iter(stream))
            stream.close()
            deadline = time.monotonic() + 2  # of the 3 s and more that the abandoned answer would have taken
            while True:
                try:
                    client.completions.create(model="builtin", prompt=SUM, max_tokens=1)
                    break
                except openai.RateLimitError:
                    assert time.monotonic() < deadline, "the place of a client that has left stays taken"
                    time.sleep(0.02)
