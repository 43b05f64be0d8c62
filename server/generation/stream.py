"""Server-sent events: a generation's deltas as chunks, and the response that carries them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.api.forms import Form, usage
from server.generation.run import Generation
from server.http.errors import ApiError, error_response
from server.http.json_codec import encode_json

logger = logging.getLogger("lightcone.server")

DONE = b"data: [DONE]\n\n"
KEEPALIVE = b": keep-alive\n\n"

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", "Content-Type": "text/event-stream; charset=utf-8"}

_T = TypeVar("_T")


class ClientGone(Exception):
    """The client went away before its answer was complete."""


def event(payload: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + encode_json(payload) + b"\n\n"


async def chunks(
    generation: Generation,
    form: Form,
    *,
    deadline: float,
    expired: Callable[[], ApiError],
    keepalive: float,
    on_chunk: Callable[[], None],
) -> AsyncGenerator[bytes, None]:
    """The whole stream, [DONE] included. Raises ApiError where the generation fails or its deadline passes.

    `deadline`: on the clock of `time.monotonic`. `keepalive`: seconds of silence after which a comment is sent; 0:
    never. `on_chunk`: called before each chunk of text or drafts.
    """
    job = generation.job

    def finished(payload: dict[str, Any]) -> bytes:
        if job.continuous_usage:
            payload["usage"] = usage(generation)
        elif job.include_usage:
            payload["usage"] = None
        return event(payload)

    def ending() -> bytes:
        closing = finished(form.closing()) if job.diffusing else b""
        if job.include_usage:
            closing += event({**form.envelope([], chunk=True), "usage": usage(generation)})
        return closing + DONE

    write = form.replacement if job.diffusing else form.chunk
    async with generation:
        while True:
            left = max(deadline - time.monotonic(), 0)
            try:
                async with asyncio.timeout(min(left, keepalive or left)):
                    deltas = await generation.next()
            except TimeoutError:
                if keepalive and time.monotonic() < deadline:
                    yield KEEPALIVE
                    continue
                raise expired() from None
            on_chunk()
            data = b"".join([finished(write(generation.choices[delta.index], delta)) for delta in deltas])
            if generation.reported:
                yield data + ending()
                return
            yield data


async def until_gone(work: Awaitable[_T], receive: Receive) -> _T:
    """Awaits the work, but no longer than the client stays. Raises ClientGone, the work being cancelled by then."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.create_task(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for pending in (task, watch):
            pending.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


class EventStream(Response):
    """Sends events as they come. The headers go with the first of them, so a failure before it is a plain error.

    `on_end` is told how it ended: the status that went out and the error, if one did.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        on_end: Callable[[int, Exception | None], None],
        stall_timeout: float,
    ) -> None:
        super().__init__(status_code=200, headers=HEADERS)
        del self.headers["content-length"]
        self._events, self._on_end = events, on_end
        self._stall_timeout = stall_timeout
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: runs the stream until its end, an error, or the client's leaving."""
        status = 200
        failure: Exception | None = None
        try:
            await until_gone(self._run(send), receive)
        except ApiError as exc:
            failure, status = exc, exc.status
            if not self._started:
                await error_response(exc)(scope, receive, send)
            else:
                await self._send(send, event(exc.body()), more=False)
        except (ClientGone, TimeoutError) as exc:
            failure, status = exc, 499
        except asyncio.CancelledError:
            failure, status = ClientGone(), 499
            raise
        except Exception as exc:
            logger.exception("a stream failed")
            failure, status = exc, 500
            error = ApiError("The server had an error while processing your request.", None, "internal_error")
            if self._started:
                await self._send(send, event(error.body()), more=False)
            else:
                await error_response(error)(scope, receive, send)
        finally:
            self._on_end(status, failure)

    async def _run(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            async for data in events:
                await self._send(send, data)
        await self._send(send, b"", more=False)

    async def _send(self, send: Send, data: bytes, *, more: bool = True) -> None:
        """Sends within the stall limit; a reader that takes nothing for longer is treated as gone."""
        async with asyncio.timeout(self._stall_timeout):
            if not self._started:
                self._started = True
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": data, "more_body": more})
