"""Sends one request to an OpenAI-compatible server and measures it. Errors are kept in the request's record."""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal

import aiohttp
import msgspec

from loadtest.records import Record
from loadtest.stream_reader import EventLines, decode, error_message, note
from loadtest.workload import Prompt

Api = Literal["chat", "completions"]

_QUICK = aiohttp.ClientTimeout(total=10.0)
_BETWEEN_ASKING_S = 0.2
_END_S = 1.0
"""Seconds that a server may take to end its answer after the last event."""

CHAT_TEMPLATE = "<|user|>{prompt}<|assistant|>"
"""The built-in model's chat format, for its questions sent to /v1/completions."""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """The server and how it is asked."""

    base_url: str
    """Up to and without /v1, such as http://127.0.0.1:8000."""
    model: str | None = None
    api: Api = "chat"
    stream: bool = True
    keep_alive: bool = True
    """Connections serve several requests. Some servers close them after a streamed answer without saying so."""
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
    """A keep-alive pool to one target. Use as an async context manager.

    aiohttp, not httpx: its parser is compiled, and CPU time used here is lost to a server on the same machine.
    """

    def __init__(self, target: Target, connections: int) -> None:
        self.target = target
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if target.api_key:
            headers["authorization"] = f"Bearer {target.api_key}"
        self._headers = headers
        self._connections = connections
        self._http: aiohttp.ClientSession

    async def __aenter__(self) -> "Client":
        if self.target.keep_alive:
            # An idle connection is dropped before common servers drop it, so that none is reused as it closes.
            connector = aiohttp.TCPConnector(limit=self._connections, keepalive_timeout=2.0)
        else:
            connector = aiohttp.TCPConnector(limit=self._connections, force_close=True)
        self._http = aiohttp.ClientSession(
            connector=connector,
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=min(10.0, self.target.timeout_s)),
            read_bufsize=1 << 20,
            trust_env=False,  # a proxy of the environment would be what is measured
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.close()

    async def wait(self, seconds: float) -> bool:
        """Asks for the models until the server lists them. False if it has not within so many seconds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with self._http.get(self.target.base_url + "/v1/models", timeout=_QUICK) as answer:
                    if answer.status == 200:
                        return True
            await asyncio.sleep(_BETWEEN_ASKING_S)
        return False

    async def first_model(self) -> str | None:
        """The id of the first model the server lists. None when it lists none or cannot be asked."""
        try:
            async with self._http.get(self.target.base_url + "/v1/models", timeout=_QUICK) as answer:
                models = (await answer.json(content_type=None))["data"]
            return str(models[0]["id"]) if answer.status == 200 and models else None
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, IndexError, TypeError):
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
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            _fail(record, "connect", str(error) or type(error).__name__)
        except TimeoutError:
            _fail(record, "timeout", f"no complete answer within {self.target.timeout_s:g} s")
        except aiohttp.ClientError as error:
            _fail(record, "connection", str(error) or type(error).__name__)
        except msgspec.DecodeError as error:
            _fail(record, "malformed", str(error))
        except Exception as error:
            _fail(record, "client", f"{type(error).__name__}: {error}")
        record.end_s = record.end_s or time.perf_counter() - start
        return record

    async def _ask(self, prompt: Prompt, record: Record) -> None:
        body = msgspec.json.encode(self.target.body(prompt))
        url = self.target.base_url + self.target.path()
        async with self._http.post(url, data=body, allow_redirects=False) as answer:
            if answer.status != 200:
                payload = await answer.read()
                _fail(record, f"http_{answer.status}", error_message(payload))
            elif answer.content_type == "text/event-stream":
                await _read_stream(answer.content, record)
            else:
                _read_whole(await answer.read(), record)


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


async def _read_stream(body: aiohttp.StreamReader, record: Record) -> None:
    """Times are taken once a network read: chunks that came together have no gap between them to measure."""
    lines = EventLines()
    texts: list[str] = []
    last: float | None = None
    async for data in body.iter_any():
        now = time.perf_counter()
        for payload in lines.feed(data):
            if payload == b"[DONE]":
                record.text, record.end_s = "".join(texts), now - record.start_s
                await _read_out(body)
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


async def _read_out(body: aiohttp.StreamReader) -> None:
    """Reads what follows the last event, or the connection could not be used again."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_END_S):
            async for _ in body.iter_any():
                pass
