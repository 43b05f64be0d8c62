"""Reading a request's body: bounded in size and time, JSON or nothing."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import ClientDisconnect, Request

from server.generation.stream import ClientGone
from server.http.errors import BadRequest, BodyTooLarge
from server.http.json_codec import InvalidJson, decode_json
from server.operation.config import ServerConfig


async def read_json(request: Request, limits: ServerConfig) -> Any:
    """The JSON value of the body. Raises BadRequest, BodyTooLarge, or ClientGone."""
    content_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if content_type != "application/json" and not content_type.endswith("+json"):
        raise BadRequest("The Content-Type must be application/json.", None, "invalid_content_type")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise BadRequest("Compressed request bodies are not supported.", None, "invalid_content_encoding")
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared[:20]) > limits.max_body_bytes:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.body_timeout):
            body = await _read(request, limits)
    except TimeoutError:
        raise BadRequest(
            f"The request body did not arrive within {limits.body_timeout:g} s.",
            None,
            "body_timeout",
            {"Connection": "close"},
        ) from None
    except ClientDisconnect:
        raise ClientGone from None
    try:
        return decode_json(body)
    except InvalidJson as exc:
        raise BadRequest(str(exc), None, "invalid_json") from None


async def _read(request: Request, limits: ServerConfig) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limits.max_body_bytes:
            raise _too_large(limits)
        parts.append(part)
    return b"".join(parts)


def _too_large(limits: ServerConfig) -> BodyTooLarge:
    return BodyTooLarge(
        f"The request body is larger than {limits.max_body_bytes} bytes.",
        None,
        "body_too_large",
        {"Connection": "close"},  # the rest of the body is not read
    )
