"""Answers on their way to the client: whole, or as server-sent events while they form."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import NamedTuple, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.generation.generation import Generation
from server.generation.request_log import RequestLog
from server.generation.writer import AnswerWriter
from server.http.errors import (
    CLIENT_CLOSED_REQUEST,
    INTERNAL_ERROR,
    ApiError,
    ClientGone,
    TimedOut,
    error_response,
)
from server.http.json_codec import encode_json

logger = logging.getLogger("lightcone.server")

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", "Content-Type": "text/event-stream; charset=utf-8"}

_T = TypeVar("_T")


class TimeLimits(NamedTuple):
    """Seconds that an answer may take."""

    request: float
    """Longest a request may take, queueing included."""
    stall: float
    """A reader that takes nothing for this long is treated as gone."""
    keepalive: float
    """Interval of comments in a silent stream; 0: none."""

    @property
    def timed_out(self) -> TimedOut:
        """The error of a request that took longer."""
        return TimedOut(f"The request was not finished within {self.request:g} s.")


async def answer_whole(
    generation: Generation, writer: AnswerWriter, log: RequestLog, limits: TimeLimits, request: Request
) -> Response:
    """Runs the generation to its end and answers in one piece. Raises ApiError, or ClientGone."""

    async def run() -> Response:
        try:
            async with asyncio.timeout(limits.request), generation:
                choices = await generation.finish()
        except TimeoutError:
            raise limits.timed_out from None
        log.end(200, None)
        return Response(encode_json(writer.whole(generation, choices)), media_type="application/json")

    try:
        return await until_gone(run(), request.receive)
    except Exception as exc:
        log.end(_status_of(exc), exc)
        raise


def answer_streamed(generation: Generation, writer: AnswerWriter, log: RequestLog, limits: TimeLimits) -> EventStream:
    """The response that runs the generation and sends it as it forms."""
    return EventStream(chunks(generation, writer, log, limits), writer, log, limits.stall)


async def chunks(
    generation: Generation, writer: AnswerWriter, log: RequestLog, limits: TimeLimits
) -> AsyncGenerator[bytes, None]:
    """The whole stream, its ending included. Raises ApiError where the generation fails or takes too long."""
    deadline = generation.started + limits.request
    async with generation:
        while True:
            left = max(deadline - time.monotonic(), 0)
            try:
                async with asyncio.timeout(min(left, limits.keepalive or left)):
                    deltas = await generation.next()
            except TimeoutError:
                if limits.keepalive and time.monotonic() < deadline:
                    yield writer.keepalive
                    continue
                raise limits.timed_out from None
            log.chunk()
            data = b"".join([writer.chunk(generation, delta) for delta in deltas])
            if generation.reported:
                yield data + writer.ending(generation)
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


def _status_of(exc: Exception) -> int:
    """The HTTP status of a failure, as the request log tells it."""
    if isinstance(exc, ApiError):
        return exc.status
    return CLIENT_CLOSED_REQUEST if isinstance(exc, ClientGone | TimeoutError) else 500


class EventStream(Response):
    """Sends events as they come. The headers go with the first of them, so a failure before it is a plain error."""

    def __init__(
        self, events: AsyncGenerator[bytes, None], writer: AnswerWriter, log: RequestLog, stall_timeout: float
    ) -> None:
        """log: told how the stream ended. stall_timeout: seconds, see TimeLimits."""
        super().__init__(status_code=200, headers=HEADERS)
        del self.headers["content-length"]
        self._events, self._writer, self._log, self._stall_timeout = events, writer, log, stall_timeout
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: runs the stream until its end, an error, or the client's leaving."""
        failure: Exception | None = None
        try:
            await until_gone(self._run(send), receive)
        except asyncio.CancelledError:
            failure = ClientGone()
            raise
        except (ClientGone, TimeoutError) as exc:
            failure = exc
        except ApiError as exc:
            failure = exc
            await self._send_error(exc, scope, receive, send)
        except Exception as exc:
            logger.exception("a stream failed")
            failure = exc
            await self._send_error(ApiError(INTERNAL_ERROR, None, "internal_error"), scope, receive, send)
        finally:
            self._log.end(200 if failure is None else _status_of(failure), failure)

    async def _run(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            async for data in events:
                await self._send(send, data)
        await self._send(send, b"", more=False)

    async def _send_error(self, error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
        if self._started:
            await self._send(send, self._writer.failure(error, scope["state"]["request_id"]), more=False)
        else:
            await error_response(error, scope)(scope, receive, send)

    async def _send(self, send: Send, data: bytes, *, more: bool = True) -> None:
        """Sends within the stall limit. Raises TimeoutError for a reader that takes nothing for longer."""
        async with asyncio.timeout(self._stall_timeout):
            if not self._started:
                self._started = True
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": data, "more_body": more})
