"""The middleware that traces requests. Without a collector it is not there at all."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.errors import CLIENT_CLOSED_REQUEST
from server.tracing.span import FIRST_SERVER_ERROR, RequestSpan
from server.tracing.tracer import Tracer

MAX_PATH = 200


class Tracing:
    """A span for each POST request, from its headers to the last byte of its answer; whatever answers it adds facts.

    Those that only look (probes, metrics, lists) are left out. It is plain ASGI, so streams pass unchanged.
    """

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app, self._tracer = app, tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        span = state["span"] = self._tracer.begin("POST", Headers(scope=scope))
        status = CLIENT_CLOSED_REQUEST  # unless an answer begins

        async def send_watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_watched)
        except Exception as exc:
            span.fail(type(exc).__name__, by_server=True)
            raise
        finally:
            if span.recording:
                _describe(span, scope, status)
            span.end(status)


def _describe(span: RequestSpan, scope: Scope, status: int) -> None:
    """Adds what HTTP's conventions ask for."""
    state = scope["state"]
    span.set(
        {
            "http.request.method": scope["method"],
            "url.path": scope["path"][:MAX_PATH],
            "url.scheme": scope.get("scheme", "http"),
            "network.protocol.version": scope.get("http_version", "1.1"),
            "lightcone.request_id": state.get("request_id", ""),
        }
    )
    route = getattr(scope.get("route"), "path", None)
    if route is not None:
        span.set({"http.route": route})
        if not state.get("admitted", False):  # else it is called by what it generated
            span.rename(f"POST {route}")
    if "error_code" in state:
        span.fail(state["error_code"], by_server=status >= FIRST_SERVER_ERROR)
