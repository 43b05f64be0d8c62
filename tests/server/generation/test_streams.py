"""Streams: server-sent events of both endpoints, drafts, Mercury's form, and how they end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from engine.events import DraftUpdated, Finished, GenerationEvent, TokensSettled
from engine.request import Request
from tests.fakes import TEXT, FakeEngine, encode, hanging, saying, stats_of
from tests.server.conftest import Api, ApiFactory, events_of, text_of

pytestmark = pytest.mark.anyio


async def test_a_completion_stream_is_the_answer_in_pieces(api: Api) -> None:
    response = await api.complete(stream=True, max_tokens=100)
    payloads = events_of(response)
    assert payloads[-1] == "[DONE]"
    assert text_of(payloads) == TEXT
    assert [payload["choices"][0]["finish_reason"] for payload in payloads[:-1]][-1] == "stop"
    assert all(payload["object"] == "text_completion" and "usage" not in payload for payload in payloads[:-1])
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"


async def test_a_chat_stream_names_the_role_once_with_the_first_text(api: Api) -> None:
    """A chunk with a role and no text would make time to first token look better than it is."""
    payloads = events_of(await api.chat(stream=True))
    deltas = [payload["choices"][0]["delta"] for payload in payloads[:-1]]
    assert text_of(payloads) == TEXT
    assert deltas[0]["role"] == "assistant"
    assert deltas[0]["content"]
    assert all("role" not in delta for delta in deltas[1:])
    assert payloads[0]["object"] == "chat.completion.chunk"


async def test_usage_comes_only_when_asked_for(api: Api) -> None:
    payloads = events_of(await api.chat(stream=True, stream_options={"include_usage": True}))
    assert payloads[-2]["choices"] == []
    assert payloads[-2]["usage"]["completion_tokens"] == len(encode(TEXT))
    assert all(payload["usage"] is None for payload in payloads[:-2])


async def test_continuous_usage_grows_chunk_by_chunk(api: Api) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    payloads = events_of(await api.complete(stream=True, stream_options=options, max_tokens=20))
    counts = [payload["usage"]["completion_tokens"] for payload in payloads[:-1]]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] == 20


async def test_continuous_usage_is_part_of_the_usage(api: Api) -> None:
    """Without `include_usage` no chunk has any: that is how vLLM reads the two, and what its clients rely on."""
    response = await api.complete(stream=True, stream_options={"continuous_usage_stats": True})
    assert all("usage" not in chunk for chunk in events_of(response) if chunk != "[DONE]")


async def test_choices_of_a_stream_are_told_apart(api: Api) -> None:
    payloads = events_of(await api.complete(prompt=["a", "b"], n=2, stream=True, max_tokens=20, echo=True))
    for index, prompt in enumerate("aabb"):
        assert text_of(payloads, index).startswith(prompt + "Once upon")
    finished = [
        choice["index"] for payload in payloads[:-1] for choice in payload["choices"] if choice["finish_reason"]
    ]
    assert sorted(finished) == [0, 1, 2, 3]


@pytest.mark.parametrize("chunk", [1, 2, 7, 50])
async def test_a_stop_string_never_shows_however_tokens_come(serve: ApiFactory, chunk: int) -> None:
    async with serve(FakeEngine(saying(chunk=chunk))) as api:
        payloads = events_of(await api.complete(stream=True, stop="tle owl", max_tokens=100))
    assert text_of(payloads) == TEXT[: TEXT.index("tle owl")]
    assert payloads[-2]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("chunk", [1, 3])
async def test_no_chunk_holds_half_a_character(serve: ApiFactory, chunk: int) -> None:
    text = "a😀é日本語b"
    async with serve(FakeEngine(saying(text, chunk))) as api:
        payloads = events_of(await api.complete(stream=True, max_tokens=100))
    assert text_of(payloads) == text
    assert "\ufffd" not in str(payloads)


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
async def test_streamed_log_probabilities_are_those_of_the_answer(api: Api, endpoint: str) -> None:
    send: Any = api.complete if endpoint == "completions" else api.chat
    ask: dict[str, Any] = {"logprobs": 2} if endpoint == "completions" else {"logprobs": True, "top_logprobs": 2}
    whole = (await send(max_tokens=40, stop="owl", **ask)).json()["choices"][0]["logprobs"]
    payloads = events_of(await send(max_tokens=40, stop="owl", stream=True, **ask))
    key = "tokens" if endpoint == "completions" else "content"
    parts = [payload["choices"][0]["logprobs"] for payload in payloads[:-1]]
    assert [token for part in parts for token in part[key]] == whole[key]
    if endpoint == "completions":
        assert [offset for part in parts for offset in part["text_offset"]] == whole["text_offset"]


def drafting(request: Request) -> Iterator[GenerationEvent]:
    """Two denoising steps, the second of which settles a prefix; then the rest."""
    ids = encode("Once upon a time there")
    draft: list[int | None] = [None, ids[1], None, *ids[3:]]
    confidences = [None if token is None else 0.9 for token in draft]
    yield DraftUpdated(
        request_id=request.request_id, block=0, step=1, token_ids=draft, confidences=confidences, length=len(ids)
    )
    yield TokensSettled(request_id=request.request_id, token_ids=ids[:2], stats=stats_of(request, 2, 2))
    yield DraftUpdated(
        request_id=request.request_id, block=0, step=2, token_ids=[None, *ids[3:]],
        confidences=[None, *[0.9] * len(ids[3:])], length=len(ids),
    )  # fmt: skip
    yield TokensSettled(request_id=request.request_id, token_ids=ids[2:], stats=stats_of(request, len(ids), 3))
    yield Finished(request_id=request.request_id, reason="stop", stats=stats_of(request, len(ids), 3))


async def test_drafts_come_beside_a_text_that_only_grows(serve: ApiFactory) -> None:
    async with serve(FakeEngine(drafting)) as api:
        payloads = events_of(await api.complete(stream=True, stream_options={"include_drafts": True}))
    assert text_of(payloads) == "Once upon a time there"
    assert api.engine.requests[0].include_drafts
    draft = payloads[0]["choices"][0]["draft"]
    assert payloads[0]["choices"][0]["text"] == ""
    assert draft["text"].startswith("▒")
    assert (draft["block"], draft["step"], draft["masked"]) == (0, 1, 2)
    assert draft["length"] == len(draft["tokens"]) == len(encode("Once upon a time there"))
    assert draft["tokens"][0] == {"text": None, "confidence": None}
    assert draft["tokens"][1]["confidence"] == 0.9


async def test_a_draft_brings_no_role(serve: ApiFactory) -> None:
    """The role belongs to the first settled text, from which clients measure."""
    async with serve(FakeEngine(drafting)) as api:
        payloads = events_of(await api.chat(stream=True, stream_options={"include_drafts": True}))
    roles = ["role" in payload["choices"][0]["delta"] for payload in payloads[:-1]]
    assert roles.index(True) > 0
    assert roles.count(True) == 1
    assert text_of(payloads) == "Once upon a time there"


async def test_without_being_asked_for_no_draft_is_sent(api: Api) -> None:
    payloads = events_of(await api.complete(stream=True))
    assert all("draft" not in payload["choices"][0] for payload in payloads[:-1])
    assert not api.engine.requests[0].include_drafts


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
async def test_mercurys_form_replaces_the_text_with_every_chunk(serve: ApiFactory, endpoint: str) -> None:
    async with serve(FakeEngine(drafting)) as api:
        send: Any = api.complete if endpoint == "completions" else api.chat
        payloads = events_of(await send(stream=True, diffusing=True))
    assert payloads[-1] == "[DONE]"
    *shown, last, closing = payloads[:-1]
    text = [
        payload["choices"][0].get("text", payload["choices"][0].get("delta", {}).get("content"))
        for payload in (*shown, last)
    ]
    assert text[-1] == "Once upon a time there"
    assert "▒" in text[0]
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["diffusion_meta"] == {"diffusion_content": True, "diffusion_progress": 1.0}
    progress = [payload["diffusion_meta"]["diffusion_progress"] for payload in (*shown, last)]
    assert progress == sorted(progress)
    assert closing["choices"][0].get("text", "") == ""
    assert closing["choices"][0].get("delta", {}).get("content", "") == ""


async def test_an_error_before_the_first_byte_is_a_plain_error(serve: ApiFactory) -> None:
    def failing(request: Request) -> Iterator[GenerationEvent]:
        yield Finished(request_id=request.request_id, reason="error", stats=stats_of(request, 0, 0), error="NaN.")

    async with serve(FakeEngine(failing)) as api:
        response = await api.complete(stream=True)
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "NaN."


async def test_an_error_after_the_first_byte_ends_the_stream_without_done(serve: ApiFactory) -> None:
    """A client must be able to tell a broken answer from a complete one."""

    def failing(request: Request) -> Iterator[GenerationEvent | None]:
        yield TokensSettled(request_id=request.request_id, token_ids=encode("Once"), stats=stats_of(request, 1, 1))
        yield from [None] * 20
        yield Finished(request_id=request.request_id, reason="error", stats=stats_of(request, 1, 1), error="NaN.")

    async with serve(FakeEngine(failing)) as api:
        payloads = events_of(await api.complete(stream=True))
    assert text_of(payloads[:1]) == "Once"
    assert payloads[-1] == {
        "error": {"message": "NaN.", "type": "server_error", "param": None, "code": "generation_failed"}
    }


async def test_a_stream_that_takes_too_long_is_told_so(serve: ApiFactory) -> None:
    async with serve(FakeEngine(hanging), request_timeout=0.1) as api:
        payloads = events_of(await api.complete(stream=True))
        assert len(api.engine.in_flight) == 0
    assert payloads[-1]["error"]["code"] == "request_timeout"


async def asgi_request(api: Api, path: str, body: bytes, *, leave_after: int, stall: bool = False) -> list[Any]:
    """Speaks ASGI: a client that goes away, or stops reading, after so many messages."""
    sent: list[Any] = []
    gone = asyncio.Event()
    inbox = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if inbox:
            return inbox.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) >= leave_after:
            if stall:
                await asyncio.sleep(60)
            gone.set()

    if leave_after == 0:
        asyncio.get_running_loop().call_later(0.05, gone.set)
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
        "headers": [(b"content-type", b"application/json")], "client": ("test", 1), "server": ("test", 80), "state": {},
    }  # fmt: skip
    app: Any = api.http._transport.app  # type: ignore[attr-defined]
    await asyncio.wait_for(app(scope, receive, send), 10)
    return sent


@pytest.mark.parametrize("stream", [b"true", b"false"])
async def test_a_client_that_goes_away_frees_its_place(serve: ApiFactory, stream: bytes) -> None:
    """Otherwise abandoned requests fill the engine."""
    async with serve(FakeEngine(hanging)) as api:
        body = b'{"prompt": "x", "stream": ' + stream + b"}"
        await asgi_request(api, "/v1/completions", body, leave_after=2 if stream == b"true" else 0)
        assert len(api.engine.in_flight) == 0
        assert api.engine.aborted == [api.engine.requests[0].request_id]
        assert b'status="499"' in api.service.metrics.render()


async def test_a_reader_that_takes_nothing_is_dropped(serve: ApiFactory) -> None:
    """One stuck client must not hold pages and memory for ever."""
    async with serve(FakeEngine(saying(TEXT * 3)), stream_stall_timeout=0.05) as api:
        await asgi_request(api, "/v1/completions", b'{"prompt": "x", "stream": true}', leave_after=2, stall=True)
        assert len(api.engine.in_flight) == 0


async def test_a_silent_stream_is_kept_alive_where_configured(serve: ApiFactory) -> None:
    async with serve(FakeEngine(hanging), sse_keepalive=0.02, request_timeout=0.2) as api:
        response = await api.complete(stream=True)
    assert ": keep-alive\n\n" in response.text
