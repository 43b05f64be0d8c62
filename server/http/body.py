"""Reads a request's body as JSON, bounded in size and time."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import anyio.to_thread
from starlette.requests import ClientDisconnect, Request

from server.http.errors import BadRequest, BodyTooLarge, ClientGone
from server.http.json_codec import InvalidJson, decode_json

EXACT_MEMBERS = ("response_format", "structured_outputs", "tools", "text", "output_config")
"""Members of a request that may hold JSON schemas: its numbers are limits of the answer, and are kept as written."""
LARGE_BODY = 64 * 1024
"""Bytes from which a body is parsed in a thread, one such body at a time, so that no other request waits for it."""

_T = TypeVar("_T")


class BodyLimits(NamedTuple):
    """The largest and slowest request body that is read."""

    max_bytes: int
    timeout: float
    """Seconds."""


async def read_json(request: Request, limits: BodyLimits, parse: Callable[[Any], _T], turn: asyncio.Semaphore) -> _T:
    """What `parse` makes of the JSON value of the body. Raises BadRequest, BodyTooLarge, ClientGone, or as it does.

    turn: held while a large body is parsed.
    """
    content_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if content_type != "application/json" and not content_type.endswith("+json"):
        raise BadRequest("The Content-Type must be application/json.", None, "invalid_content_type")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise BadRequest("Compressed request bodies are not supported.", None, "invalid_content_encoding")
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared[:20]) > limits.max_bytes:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.timeout):
            body = await _read(request, limits)
    except TimeoutError:
        message = f"The request body did not arrive within {limits.timeout:g} s."
        raise BadRequest(message, None, "body_timeout", {"Connection": "close"}) from None
    except ClientDisconnect:
        raise ClientGone from None
    if len(body) < LARGE_BODY:
        return parse(_decode(body))
    async with turn:
        return await anyio.to_thread.run_sync(lambda: _parse_large(body, parse))


def _parse_large(body: bytes, parse: Callable[[Any], _T]) -> _T:
    """Parses without the garbage collector, which would look through a million new lists again and again."""
    gc.disable()
    try:
        return parse(_decode(body))
    finally:
        gc.enable()


def _decode(body: bytes) -> Any:
    try:
        return decode_json(body, exact=EXACT_MEMBERS)
    except InvalidJson as exc:
        raise BadRequest(str(exc), None, "invalid_json") from None


async def _read(request: Request, limits: BodyLimits) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limits.max_bytes:
            raise _too_large(limits)
        parts.append(part)
    return b"".join(parts)


def _too_large(limits: BodyLimits) -> BodyTooLarge:
    message = f"The request body is larger than {limits.max_bytes} bytes."
    # The rest of the body is not read, so the connection cannot be used again.
    return BodyTooLarge(message, None, "body_too_large", {"Connection": "close"})
