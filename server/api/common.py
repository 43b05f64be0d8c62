"""Helpers of the route functions."""

from __future__ import annotations

from typing import Any, cast

from starlette.requests import Request
from starlette.responses import Response

from server.http.body import BodyLimits, read_json
from server.http.json_codec import encode_json
from server.operation.service import Service


def service_of(request: Request) -> Service:
    """The application's service."""
    return cast(Service, request.app.state.service)


async def body_of(request: Request) -> Any:
    """The request's body as a JSON value, within the server's limits. Raises BadRequest, BodyTooLarge, ClientGone."""
    options = service_of(request).config.server
    return await read_json(request, BodyLimits(options.max_body_bytes, options.body_timeout))


def json_response(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(encode_json(value), status, headers, "application/json")
