"""A small OpenAI server on a thread, whose answer to each request is decided by the test."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn

Body = dict[str, Any]

USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 12,
    "total_tokens": 21,
    "prompt_tokens_details": {"cached_tokens": 3},
    "diffusion": {"decoding": "diffusion", "passes": 4, "tokens_per_pass": 3.0, "seed": 1},
}


@dataclass
class Reply:
    """What the server does with one request."""

    pieces: tuple[str, ...] = ("Hello", ", ", "world")
    usage: dict[str, Any] | None = field(default_factory=lambda: USAGE)
    status: int = 200
    error: str | None = None
    """The message of an error: the body of a non-200 answer, or sent after the pieces."""
    done: bool = True
    """Whether the stream ends with [DONE]."""
    drop: bool = False
    """Close the connection after the pieces."""
    delay_s: float = 0.0
    raw: bytes | None = None
    """Sent as the body (event stream when streaming), whatever it is."""


class FakeServer:
    """Records what it was asked. `reply` chooses the answer; `models` is what /v1/models lists."""

    def __init__(self) -> None:
        self.url = ""
        self.reply: Callable[[Body], Reply] = lambda body: Reply()
        self.models = ["fake"]
        self.refusals = 0
        """How often /v1/models still says 503, as while a model loads."""
        self.bodies: list[Body] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.peers: list[tuple[str, int]] = []
        """The other end of the connection that each request came over."""
        self.in_flight = 0
        self.most_in_flight = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        data, more = b"", True
        while more:
            message = await receive()
            data, more = data + message.get("body", b""), message.get("more_body", False)
        if scope["path"] == "/v1/models" and self.refusals:
            self.refusals -= 1
            return await _send(send, 503, "application/json", b"{}")
        if scope["path"] == "/v1/models":
            listed = {"object": "list", "data": [{"id": name} for name in self.models]}
            return await _send(send, 200, "application/json", json.dumps(listed).encode())
        body = json.loads(data)
        self.bodies.append(body)
        self.paths.append(scope["path"])
        self.peers.append(tuple(scope["client"]))
        self.headers.append({name.decode(): value.decode() for name, value in scope["headers"]})
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await self._answer(body, self.reply(body), send)
        finally:
            self.in_flight -= 1

    async def _answer(self, body: Body, reply: Reply, send: Any) -> None:
        await asyncio.sleep(reply.delay_s)
        stream = body.get("stream", False)
        if reply.status != 200:
            payload = json.dumps({"error": {"message": reply.error, "type": "x", "param": None, "code": None}}).encode()
            return await _send(send, reply.status, "application/json", payload)
        kind = "text/event-stream; charset=utf-8" if stream else "application/json"
        if reply.raw is not None:
            return await _send(send, 200, kind, reply.raw)
        if not stream:
            message = {"message": {"role": "assistant", "content": "".join(reply.pieces)}}
            choice = message if "messages" in body else {"text": "".join(reply.pieces)}
            whole = {"choices": [{"index": 0, "finish_reason": "stop", **choice}], "usage": reply.usage}
            return await _send(send, 200, kind, json.dumps(whole).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind.encode())]})
        for event in self._events(body, reply):
            await send({"type": "http.response.body", "body": b"data: " + event + b"\n\n", "more_body": True})
            await asyncio.sleep(0)
        if reply.drop:
            raise ConnectionError("dropped on purpose")
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return None

    def _events(self, body: Body, reply: Reply) -> Iterator[bytes]:
        chat = "messages" in body
        for piece in reply.pieces:
            choice = {"delta": {"content": piece}} if chat else {"text": piece}
            yield json.dumps({"choices": [{"index": 0, "finish_reason": None, **choice}]}).encode()
        if reply.drop:
            return
        if reply.error is not None:
            yield json.dumps({"error": {"message": reply.error}}).encode()
            return
        last: Body = {"delta": {}} if chat else {"text": ""}
        yield json.dumps({"choices": [{"index": 0, "finish_reason": "stop", **last}]}).encode()
        if reply.usage is not None and (body.get("stream_options") or {}).get("include_usage"):
            yield json.dumps({"choices": [], "usage": reply.usage}).encode()
        if reply.done:
            yield b"[DONE]"


async def _send(send: Any, status: int, kind: str, payload: bytes) -> None:
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(payload)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": payload})


@contextmanager
def serve(fake: FakeServer) -> Iterator[FakeServer]:
    """Run the fake on a free port of this machine until the block ends."""
    config = uvicorn.Config(
        fake, host="127.0.0.1", port=0, log_config=None, access_log=False, lifespan="off", ws="none", loop="asyncio"
    )
    config.timeout_graceful_shutdown = 1
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline, "the fake server did not start"
        time.sleep(0.01)
    fake.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield fake
    finally:
        server.should_exit = True
        thread.join(timeout=20)
