"""If these fail, a request is measured wrongly, or one failure ends a whole load test."""

import asyncio
import socket
from typing import Any

import pytest

from loadtest.http_client import Client, Target
from loadtest.records import Record
from loadtest.workload import Prompt
from tests.loadtest.fake import USAGE, FakeServer, Reply


def ask(fake: FakeServer, prompt: Prompt | None = None, **target: Any) -> Record:
    async def go() -> Record:
        async with Client(Target(**({"base_url": fake.url, "model": "fake"} | target)), connections=2) as client:
            return await client.send(prompt or Prompt(text="Hi", category="greeting"), index=4)

    return asyncio.run(go())


@pytest.mark.parametrize("api", ["chat", "completions"])
@pytest.mark.parametrize("stream", [True, False])
def test_text_and_usage_are_read_from_both_apis_streamed_or_whole(fake: FakeServer, api: str, stream: bool) -> None:
    record = ask(fake, api=api, stream=stream)
    assert (record.error, record.text, record.finish_reason) == ("", "Hello, world", "stop")
    assert (record.index, record.category) == (4, "greeting")
    assert (record.prompt_tokens, record.completion_tokens, record.cached_tokens) == (9, 12, 3)
    assert (record.passes, record.decoding) == (4, "diffusion")
    assert fake.paths == ["/v1/chat/completions" if api == "chat" else "/v1/completions"]


def test_times_of_a_stream_are_in_order_and_a_whole_answer_has_no_first_text(fake: FakeServer) -> None:
    fake.reply = lambda body: Reply(delay_s=0.05)
    record = ask(fake)
    assert record.first_text_s is not None
    assert 0.05 <= record.first_text_s <= record.end_s
    assert all(gap >= 0 for gap in record.gaps_s)
    assert sum(record.gaps_s) <= record.end_s
    whole = ask(fake, stream=False)
    assert (whole.first_text_s, whole.gaps_s) == (None, [])


def test_chunks_without_text_are_not_the_first_text(fake: FakeServer) -> None:
    fake.reply = lambda body: Reply(pieces=("", ""))
    record = ask(fake)
    assert (record.error, record.text, record.first_text_s) == ("", "", None)


def test_latency_counts_from_when_the_request_was_due(fake: FakeServer) -> None:
    async def go() -> Record:
        async with Client(Target(base_url=fake.url), connections=1) as client:
            return await client.send(Prompt(text="Hi"), due=asyncio.get_running_loop().time() - 5.0)

    record = asyncio.run(go())
    assert record.lag_s >= 5.0
    assert record.end_s >= 5.0
    assert record.first_text_s is not None
    assert record.first_text_s >= 5.0


@pytest.mark.parametrize("keep_alive", [True, False])
def test_connections_are_kept_unless_each_request_wants_its_own(fake: FakeServer, keep_alive: bool) -> None:
    """A server that closes them without saying so, as llama.cpp's does, could not be measured."""

    async def go() -> None:
        async with Client(Target(base_url=fake.url, keep_alive=keep_alive), connections=1) as client:
            for _ in range(3):
                assert (await client.send(Prompt(text="Hi"))).error == ""

    asyncio.run(go())
    assert len(set(fake.peers)) == (1 if keep_alive else 3)


@pytest.mark.parametrize(
    ("reply", "kind", "detail"),
    [
        (Reply(status=429, error="queue full"), "http_429", "queue full"),
        (Reply(status=500, error="engine failed"), "http_500", "engine failed"),
        (Reply(error="engine failed"), "stream_error", "engine failed"),
        (Reply(done=False), "truncated", "[DONE]"),
        (Reply(drop=True), "connection", ""),
        (Reply(raw=b"data: {oops\n\n"), "malformed", "JSON"),
        (Reply(delay_s=30.0), "timeout", "0.2 s"),
    ],
)
def test_each_failure_has_its_kind_and_never_raises(fake: FakeServer, reply: Reply, kind: str, detail: str) -> None:
    fake.reply = lambda body: reply
    record = ask(fake, timeout_s=0.2 if kind == "timeout" else 20.0)
    assert record.error == kind
    assert detail in record.detail
    assert record.end_s > 0


@pytest.mark.parametrize("raw", [b"[]", b"<html>", b'{"choices": []}', b'{"error": {"message": "no"}}'])
def test_a_whole_answer_that_is_none_is_malformed(fake: FakeServer, raw: bytes) -> None:
    fake.reply = lambda body: Reply(raw=raw)
    assert ask(fake, stream=False).error == "malformed"


def test_a_server_that_is_not_there_is_a_connect_error() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        fake = FakeServer()
        fake.url = f"http://127.0.0.1:{held.getsockname()[1]}"
        assert ask(fake).error == "connect"


def test_a_prompt_the_api_cannot_carry_is_an_error_of_that_request(fake: FakeServer) -> None:
    assert ask(fake, Prompt(token_ids=(1, 2))).error == "client"
    assert ask(fake, Prompt(messages=({"role": "user", "content": "x"},)), api="completions").error == "client"
    assert fake.bodies == []


def test_what_is_sent_is_what_was_asked_for(fake: FakeServer) -> None:
    fields = {"decoding": "diffusion", "threshold": 0.8, "stream_options": {"include_drafts": True}, "model": None}
    ask(fake, Prompt(text="Hi", max_tokens=7), api="completions", prompt_template="<{prompt}>", fields=fields)
    assert fake.bodies == [
        {
            "prompt": "<Hi>",
            "max_tokens": 7,
            "stream": True,
            "stream_options": {"include_usage": True, "include_drafts": True},
            "decoding": "diffusion",
            "threshold": 0.8,
        }
    ]


def test_the_key_is_sent_as_a_bearer_token_and_only_when_given(fake: FakeServer) -> None:
    ask(fake, api_key="secret")
    ask(fake)
    assert fake.headers[0]["authorization"] == "Bearer secret"
    assert "authorization" not in fake.headers[1]


def test_a_replacing_stream_keeps_only_the_last_text(fake: FakeServer) -> None:
    chunks = [
        b'{"choices": [{"text": "a b"}], "diffusion_meta": {"diffusion_progress": 0.5}}',
        b'{"choices": [{"text": "a c d"}], "diffusion_meta": {"diffusion_progress": 1.0}}',
        b'{"choices": [{"text": "", "finish_reason": "stop"}]}',
        b"[DONE]",
    ]
    fake.reply = lambda body: Reply(raw=b"".join(b"data: " + chunk + b"\n\n" for chunk in chunks))
    assert ask(fake, api="completions").text == "a c d"


def test_a_draft_is_timed_apart_from_the_first_text(fake: FakeServer) -> None:
    raw = b'data: {"choices": [{"text": "", "draft": {"text": "x"}}]}\n\ndata: [DONE]\n\n'
    fake.reply = lambda body: Reply(raw=raw)
    record = ask(fake, api="completions")
    assert record.first_draft_s is not None
    assert record.first_text_s is None


def test_the_first_model_listed_is_found_and_none_is_not_an_error(fake: FakeServer) -> None:
    async def first(url: str) -> str | None:
        async with Client(Target(base_url=url), connections=1) as client:
            return await client.first_model()

    assert asyncio.run(first(fake.url)) == "fake"
    fake.models = []
    assert asyncio.run(first(fake.url)) is None
    assert asyncio.run(first("http://127.0.0.1:1")) is None


def test_usage_is_optional(fake: FakeServer) -> None:
    fake.reply = lambda body: Reply(usage=None)
    record = ask(fake)
    assert (record.error, record.text, record.completion_tokens) == ("", "Hello, world", None)
    fake.reply = lambda body: Reply(usage={k: v for k, v in USAGE.items() if k != "diffusion"})
    assert ask(fake).passes is None
