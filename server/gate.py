"""The one middleware: request ids, keys, the refusal of new work while draining, and counting what is in flight."""

from __future__ import annotations

import re
import secrets
from contextlib import nullcontext

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.auth import OPEN_PATHS, Keys
from server.errors import Unavailable, handle_error
from server.service import Service

PROBES = OPEN_PATHS | {"/metrics", "/version"}
"""Answered while draining, and not waited for."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Gate:
    """Pure ASGI, so that disconnects and streams pass through untouched."""

    def __init__(self, app: ASGIApp, service: Service, keys: Keys) -> None:
        self._app, self._service, self._keys = app, service, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id

        started = False

        async def send_marked(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            self._keys.check(scope["path"], headers.get("authorization"))
            self._check_open(scope)
            with nullcontext() if scope["path"] in PROBES else self._service.answering():
                await self._app(scope, receive, send_marked)
        except Exception as exc:
            if started:
                raise
            await (await handle_error(Request(scope), exc))(scope, receive, send_marked)

    def _check_open(self, scope: Scope) -> None:
        if self._service.refusing and scope["path"] not in PROBES:
            raise Unavailable("The server is shutting down; try another.", "shutting_down", 1, close=True)
