"""Helpers of the route functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from starlette.requests import Request
from starlette.responses import Response

from server.http.body import BodyLimits, read_json
from server.http.errors import BadRequest
from server.http.json_codec import encode_json
from server.operation.service import Service

_T = TypeVar("_T")


def service_of(request: Request) -> Service:
    """The application's service."""
    return cast(Service, request.app.state.service)


async def parse_body(request: Request, parse: Callable[[Any], _T]) -> _T:
    """What `parse` makes of the body's JSON value, within the server's limits; it may run in a thread.

    Raises BadRequest, BodyTooLarge, ClientGone, or as `parse` does.
    """
    service = service_of(request)
    options = service.config.server
    limits = BodyLimits(options.max_body_bytes, options.body_timeout)
    return await read_json(request, limits, parse, service.parsing)


def json_response(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(encode_json(value), status, headers, "application/json")


def renamed(error: BadRequest, names: Sequence[tuple[re.Pattern[str], str]]) -> BadRequest:
    """An error of a request that was made of another one, in the other one's names.

    names: patterns of names within apostrophes, and what they become.
    """
    if error.param is None:
        return error
    param, message = f"'{error.param}'", error.message
    for pattern, name in names:
        param, message = pattern.sub(name, param), pattern.sub(name, message)
    return BadRequest(message, param.strip("'"), error.code)
