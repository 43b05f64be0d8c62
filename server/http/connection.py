"""uvicorn's HTTP/1.1 connection, with limits on the number of connections and on slow headers, and errors as JSON."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from typing import Any, ClassVar, NamedTuple

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.http.errors import ApiError, BadRequest, OnRefused, Refusal, error_bytes, too_many_connections
from server.http.middleware import new_request_id

KEEPALIVE_SECONDS = 60
"""Silence after which the kernel asks whether the peer still exists: one that vanished never closes its connection."""
HALF_CLOSED_KEEPALIVE_SECONDS = 5
"""The same, and the pause between two such questions, where the peer has said that it sends no more."""
READ_BYTES = 32 * 1024
"""Most bytes parsed at once: what one connection may hold the others up for."""
SMALL_CHUNK = 64
"""A chunk of a body with fewer bytes than this counts as small."""
MAX_SMALL_CHUNKS = 4096
"""Most small chunks of one body: parsing a chunk costs the server a hundred times what it costs the sender."""
HALF_CLOSED_CHECK_SECONDS = 0.25
"""How often a connection whose peer sends no more is looked at: a peer that is gone answers the next packet with a
reset."""

_ABSOLUTE = re.compile(rb"https?://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)


class _Connection(h11.Connection):
    """h11's parser, for HTTP/1 alone, with a bound on the small chunks of one message.

    A target in absolute form (RFC 9112, 3.2.2) is given on as a path, and its host as the Host header.
    """

    small_chunks = 0

    def next_event(self) -> Any:
        """The next event. Raises h11.RemoteProtocolError."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self.small_chunks = 0
            if not event.http_version.startswith(b"1."):
                raise h11.RemoteProtocolError("not HTTP/1")
            absolute = _ABSOLUTE.fullmatch(event.target)
            if absolute is not None:
                event = _in_origin_form(event, *absolute.groups())
        elif isinstance(event, h11.Data) and len(event.data) < SMALL_CHUNK:
            self.small_chunks += 1
            if self.small_chunks > MAX_SMALL_CHUNKS:
                raise h11.RemoteProtocolError("too many small chunks")
        return event


def _in_origin_form(request: h11.Request, host: bytes, target: bytes) -> h11.Request:
    """The request with a path as its target. Raises h11.RemoteProtocolError where its URL names no host."""
    if not host:
        raise h11.RemoteProtocolError("a URL without a host")
    headers = [(name, host if name == b"host" else value) for name, value in request.headers]
    path = target if target.startswith(b"/") else b"/" + target
    return h11.Request(method=request.method, headers=headers, target=path, http_version=request.http_version)


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
    """Times the span between a request's first byte, or the connection's opening, and the end of its headers.

    A client may close its sending half once its request is whole: it still gets its answers, and is then disconnected.
    From the socket alone this cannot be told from a client that has gone, so such a connection is asked: by an interim
    response where no answer has begun, by the answer itself, and by the kernel.
    """

    limits: ClassVar[ConnectionLimits]
    _header_timer: asyncio.TimerHandle | None = None
    _check_timer: asyncio.TimerHandle | None = None
    """Runs where the peer sends no more."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = _Connection(h11.SERVER)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _set_socket_options(transport, self.limits.write_timeout)
        if len(self.connections) > self.limits.max_connections:
            self._refuse(too_many_connections())
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

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """The peer sends no more. Returns True where an answer is due, which keeps the connection open to write."""
        if self._check_timer is not None:  # reading had been paused, and found the end once more
            return True
        if self.cycle is None or self.cycle.response_complete or self.cycle.more_body:
            return None
        if self.transport.get_extra_info("sslcontext") is not None:  # asyncio closes these whatever is returned
            return None
        set_keepalive(self.transport, HALF_CLOSED_KEEPALIVE_SECONDS)
        # A peer that is gone resets the connection when anything is sent to it. HTTP/1.0 knows no interim responses.
        if self.conn.our_state is h11.SEND_RESPONSE and self.scope["http_version"] != "1.0":
            interim = h11.InformationalResponse(status_code=100, headers=[], reason="Continue")
            self.transport.write(self.conn.send(interim))
        self._check_timer = self.loop.call_later(HALF_CLOSED_CHECK_SECONDS, self._check_peer)
        return True

    def _check_peer(self) -> None:
        """Gives the connection up once it has been reset; reading would only tell the end of the stream again."""
        if self.transport.is_closing():
            return
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
            return
        self._check_timer = self.loop.call_later(HALF_CLOSED_CHECK_SECONDS, self._check_peer)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._check_timer is not None and self.cycle.response_complete:  # no other request had come before the end
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        if self._check_timer is not None:
            self._check_timer.cancel()
        self._unset_keepalive_if_required()
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
        self.transport.write(error_bytes(error, request_id))
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
    set_keepalive(transport, KEEPALIVE_SECONDS)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, int(write_timeout * 1000)))


def set_keepalive(transport: asyncio.Transport, seconds: int) -> None:
    """Has the kernel ask a peer that has been silent for so long whether it still exists, and again as often."""
    connection = transport.get_extra_info("socket")
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    with contextlib.suppress(OSError):  # the connection may just have been reset
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):  # not on every platform
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, seconds)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, seconds)
