"""uvicorn's HTTP/1.1 connection, with limits on the number of connections and on slow headers, and errors as JSON."""

from __future__ import annotations

import asyncio
import socket
from http import HTTPStatus
from typing import Any, ClassVar, NamedTuple

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.http.errors import ApiError, BadRequest, OnRefused, Refusal, Unavailable
from server.http.json_codec import encode_json
from server.http.middleware import new_request_id

KEEPALIVE_SECONDS = 60
"""Silence after which the kernel asks whether the peer still exists: one that vanished never closes its connection."""
READ_BYTES = 32 * 1024
"""Most bytes parsed at once: what one connection may hold the others up for."""
SMALL_CHUNK = 64
"""A chunk of a body with fewer bytes than this counts as small."""
MAX_SMALL_CHUNKS = 4096
"""Most small chunks of one body: parsing a chunk costs the server a hundred times what it costs the sender."""


class _Connection(h11.Connection):
    """h11's parser, for HTTP/1 alone, and with a bound on the small chunks of one message."""

    small_chunks = 0

    def next_event(self) -> Any:
        """The next event. Raises h11.RemoteProtocolError."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self.small_chunks = 0
            if not event.http_version.startswith(b"1."):
                raise h11.RemoteProtocolError("not HTTP/1")
        elif isinstance(event, h11.Data) and len(event.data) < SMALL_CHUNK:
            self.small_chunks += 1
            if self.small_chunks > MAX_SMALL_CHUNKS:
                raise h11.RemoteProtocolError("too many small chunks")
        return event


class ConnectionLimits(NamedTuple):
    """What a connection may cost. Times are in seconds."""

    header_timeout: float
    """A connection is closed whose next headers take longer."""
    write_timeout: float
    """A connection is closed whose peer takes nothing of what is sent to it for so long."""
    max_connections: int
    on_refused: OnRefused
    """Called for each answer that the application does not see."""


def http_protocol(given: ConnectionLimits) -> type[asyncio.Protocol]:
    """The protocol class for uvicorn, which makes one for each connection and knows nothing of limits."""

    class Protocol(LimitedProtocol):
        limits = given

    return Protocol


class LimitedProtocol(H11Protocol):
    """Times the span between a request's first byte, or the connection's opening, and the end of its headers."""

    limits: ClassVar[ConnectionLimits]
    _header_timer: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = _Connection(h11.SERVER)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _set_socket_options(transport, self.limits.write_timeout)
        if len(self.connections) > self.limits.max_connections:
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
        request_id = new_request_id()
        self.limits.on_refused(Refusal(request_id, error.status, error.code or "unknown"))
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # an answer is on its way, or has been given
            self.transport.close()
            return
        body = encode_json(error.body())
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
            "x-request-id": request_id,
            **error.headers,
        }
        lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.transport.write("\r\n".join([*lines, "", ""]).encode("ascii") + body)
        self.transport.close()

    def _arm(self) -> None:
        if self._header_timer is None and not self.transport.is_closing():
            self._header_timer = self.loop.call_later(self.limits.header_timeout, self._expire)

    def _disarm(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _expire(self) -> None:
        self._header_timer = None
        if not self.transport.is_closing():
            self.transport.close()


def _set_socket_options(transport: asyncio.Transport, write_timeout: float) -> None:
    if hasattr(transport, "max_size"):  # of asyncio's own socket transport; its default is eight times as much
        transport.max_size = READ_BYTES
    connection = transport.get_extra_info("socket")
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    # asyncio does it only for sockets that were made with their protocol's number. Without it the second packet of an
    # answer waits for the first one's acknowledgement: 40 ms.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):  # not on every platform
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, int(write_timeout * 1000)))
