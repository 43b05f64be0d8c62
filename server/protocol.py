"""uvicorn's HTTP/1.1 protocol, with limits on connections and on how slowly headers may come, and errors as JSON."""

from __future__ import annotations

import asyncio
import socket
from http import HTTPStatus

from uvicorn.protocols.http.h11_impl import H11Protocol

from server.errors import ApiError, BadRequest, Unavailable
from server.wire import encode_json

KEEPALIVE_SECONDS = 60
"""Silence after which the kernel asks whether the peer still exists: one that vanished never closes its connection."""


def http_protocol(header_timeout: float, max_connections: int) -> type[asyncio.Protocol]:
    """The protocol class for uvicorn. A connection whose next headers take longer than the limit is closed."""

    class Protocol(H11Protocol):
        """Times the span between a request's first byte, or the connection's opening, and the end of its headers."""

        _header_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            _probe_peer(transport)
            if len(self.connections) > max_connections:
                self._refuse(Unavailable("The server has too many connections.", "too_many_connections", 1))
            else:
                self._arm()

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            super().data_received(data)
            between = self.cycle is None or self.cycle.response_complete
            # The keep-alive timer runs again only once a request has been answered; until then, these are headers.
            if between and self.timeout_keep_alive_task is None:
                self._arm()
            else:
                self._disarm()

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            self._refuse(BadRequest(msg, None, "invalid_http"))

        def _refuse(self, error: ApiError) -> None:
            """Answers without the application, written by hand: the parser may be in no state to do it."""
            body = encode_json(error.body())
            headers = {
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
                "Connection": "close",
                **error.headers,
            }
            lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            self.transport.write("\r\n".join([*lines, "", ""]).encode("ascii") + body)
            self.transport.close()

        def _arm(self) -> None:
            if self._header_timer is None and not self.transport.is_closing():
                self._header_timer = self.loop.call_later(header_timeout, self._expire)

        def _disarm(self) -> None:
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None

        def _expire(self) -> None:
            self._header_timer = None
            if not self.transport.is_closing():
                self.transport.close()

    return Protocol


def _probe_peer(transport: asyncio.Transport) -> None:
    connection = transport.get_extra_info("socket")
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):  # not on every platform
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)
