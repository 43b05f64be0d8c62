"""One request to an OpenAI-compatible server, measured. Whatever goes wrong ends up in the request's record."""

import asyncio
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal

import httpx
import msgspec

from loadtest.records import Record
from loadtest.wire import EventLines, decode, error_message, note
from loadtest.workload import Prompt

Api = Literal["chat", "completions"]

CHAT_TEMPLATE = "<|user|>{prompt}<|assistant|>"
"""The built-in model's chat format, for its questions sent to /v1/completions."""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """The server and how it is asked."""

    base_url: str
    """Up to and without /v1, such as http://127.0.0.1:8000."""
    model: str | None = None
    api: Api = "chat"
    stream: bool = True
    api_key: str | None = None
    timeout_s: float = 120.0
    """Longest a request may take from end to end."""
    max_tokens: int | None = None
    prompt_template: str | None = None
    """Wraps text prompts of the completions API; `{prompt}` stands for the prompt."""
    fields: dict[str, Any] = {}
    """Further request fields. A field that is None is left out, the tool's own included."""

    def path(self) -> str:
        """The route of the chosen API."""
        return "/v1/chat/completions" if self.api == "chat" else "/v1/completions"

    def body(self, prompt: Prompt) -> dict[str, Any]:
        """The JSON body. Raises ValueError when the API cannot carry the prompt."""
        body: dict[str, Any] = {"model": self.model, "max_tokens": prompt.max_tokens or self.max_tokens}
        if self.api == "chat":
            if prompt.token_ids is not None:
                raise ValueError("The chat API takes no token ids; use --api completions.")
            body["messages"] = prompt.messages or [{"role": "user", "content": prompt.text}]
        elif prompt.messages is not None:
            raise ValueError("The completions API takes no messages; use --api chat.")
        elif prompt.text is not None and self.prompt_template is not None:
            body["prompt"] = self.prompt_template.replace("{prompt}", prompt.text)
        else:
            body["prompt"] = prompt.text if prompt.text is not None else prompt.token_ids
        if self.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        body = _merged(body, self.fields)
        return {name: value for name, value in body.items() if value is not None}


def _merged(body: dict[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Add `fields`; an object given for an object (stream_options) adds to it rather than replacing it."""
    for name, value in fields.items():
        old = body.get(name)
        body[name] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    return body


class Client:
    """A keep-alive pool to one target. Use as an async context manager."""

    def __init__(self, target: Target, connections: int) -> None:
        self.target = target
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if target.api_key:
            headers["authorization"] = f"Bearer {target.api_key}"
        self._http = httpx.AsyncClient(
            base_url=target.base_url,
            headers=headers,
            timeout=httpx.Timeout(None, connect=min(10.0, target.timeout_s)),
            # An idle connection is dropped before common servers drop it, so that none is reused as it closes.
            limits=httpx.Limits(
                max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=2.0
            ),
            trust_env=False,  # a proxy of the environment would be what is measured
        )

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def first_model(self) -> str | None:
        """The id of the first model the server lists. None when it lists none or cannot be asked."""
        try:
            answer = await self._http.get("/v1/models", timeout=10.0)
            models = answer.json()["data"]
            return str(models[0]["id"]) if answer.status_code == 200 and models else None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, IndexError, TypeError):
            return None

    async def send(self, prompt: Prompt, index: int = 0, due: float | None = None) -> Record:
        """Ask once and measure; never raises but for cancellation.

        `due` is when the request should have been sent, on time.perf_counter's clock; latencies count from there.
        """
        sent = time.perf_counter()
        start = sent if due is None else due
        record = Record(index=index, category=prompt.category, start_s=start, lag_s=sent - start)
        try:
            async with asyncio.timeout(self.target.timeout_s):
                await self._ask(prompt, record)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            _fail(record, "connect", str(error) or type(error).__name__)
        except (TimeoutError, httpx.TimeoutException):
            _fail(record, "timeout", f"no complete answer within {self.target.timeout_s:g} s")
        except httpx.HTTPError as error:
            _fail(record, "connection", str(error) or type(error).__name__)
        except msgspec.DecodeError as error:
            _fail(record, "malformed", str(error))
        except Exception as error:
            _fail(record, "client", f"{type(error).__name__}: {error}")
        record.end_s = time.perf_counter() - start
        return record

    async def _ask(self, prompt: Prompt, record: Record) -> None:
        body = msgspec.json.encode(self.target.body(prompt))
        async with self._http.stream("POST", self.target.path(), content=body) as answer:
            if answer.status_code != 200:
                payload = await answer.aread()
                _fail(record, f"http_{answer.status_code}", error_message(payload))
            elif "text/event-stream" in answer.headers.get("content-type", ""):
                await _read_stream(answer, record)
            else:
                _read_whole(await answer.aread(), record)


def _fail(record: Record, kind: str, detail: str) -> None:
    record.error, record.detail = kind, detail


def _read_whole(payload: bytes, record: Record) -> None:
    chunk = decode(payload)
    if chunk.error is not None:
        _fail(record, "malformed", error_message(chunk.error))
    elif not chunk.choices:
        _fail(record, "malformed", "the answer has no choices")
    record.text = chunk.pieces()
    note(record, chunk)


async def _read_stream(answer: httpx.Response, record: Record) -> None:
    """Times are taken once a network read: chunks that came together have no gap between them to measure."""
    lines = EventLines()
    texts: list[str] = []
    last: float | None = None
    async for data in answer.aiter_raw():
        now = time.perf_counter()
        for payload in lines.feed(data):
            if payload == b"[DONE]":
                record.text = "".join(texts)
                return
            chunk = decode(payload)
            if chunk.error is not None:
                _fail(record, "stream_error", error_message(chunk.error))
                return
            note(record, chunk)
            if record.first_draft_s is None and any(choice.draft is not None for choice in chunk.choices):
                record.first_draft_s = now - record.start_s
            piece = chunk.pieces()
            if not piece:
                continue
            if chunk.diffusion_meta is not None:
                texts = [piece]  # each chunk replaces the last one
            else:
                texts.append(piece)
            if last is None:
                record.first_text_s = now - record.start_s
            else:
                record.gaps_s.append(now - last)
            last = now
    _fail(record, "truncated", "the stream ended without [DONE]")
