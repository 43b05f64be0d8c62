"""The middleware in front of every route: request ids, API keys, and the refusal of new work while draining."""

from __future__ import annotations

import re
import secrets
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.error_forms import speaks_messages
from server.http.errors import BadRequest, ErrorHandler, Unavailable
from server.http.keys import OPEN_PATHS, Keys

PROBES = OPEN_PATHS | {"/metrics", "/version"}
"""Paths that are answered while the server drains, and that a drain does not wait for."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def new_request_id() -> str:
    """An id for a request that brought none, or none that may be repeated."""
    return f"req-{secrets.token_hex(12)}"


class RequestIds:
    """The outermost middleware: every answer carries `x-request-id`. It is plain ASGI, so streams pass unchanged.

    Anthropic's clients read it from `request-id`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else new_request_id()
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if speaks_messages(scope["path"]):
                    headers["request-id"] = request_id
            await send(message)

        await self._app(scope, receive, send_marked)


class Draining(Protocol):
    """The part of the service that the middleware needs."""

    refusing: bool
    """New work is refused."""

    def answering(self) -> AbstractContextManager[None]:
        """Counts one request that a drain must wait for."""


class RequestChecks:
    """Checks each request before any route sees it: its framing, its key, and whether new work is taken at all."""

    def __init__(self, app: ASGIApp, service: Draining, keys: Keys, handle_error: ErrorHandler) -> None:
        self._app, self._service, self._keys, self._handle_error = app, service, keys, handle_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            headers = Headers(scope=scope)
            _check_framing(headers)
            self._keys.check(scope["path"], headers)
            self._check_not_draining(scope)
            with nullcontext() if scope["path"] in PROBES else self._service.answering():
                await self._app(scope, receive, send_watched)
        except Exception as exc:
            if started:
                raise
            await (await self._handle_error(Request(scope), exc))(scope, receive, send)

    def _check_not_draining(self, scope: Scope) -> None:
        if self._service.refusing and scope["path"] not in PROBES:
            raise Unavailable("The server is shutting down; try another.", "shutting_down", 1, close=True)


def _check_framing(headers: Headers) -> None:
    """Refuses a body with two lengths: a proxy that believes the other one sees a second request (RFC 9112, 6.1)."""
    if "transfer-encoding" in headers and "content-length" in headers:
        message = "A request must not have both Content-Length and Transfer-Encoding."
        raise BadRequest(message, None, "invalid_http", {"Connection": "close"})
