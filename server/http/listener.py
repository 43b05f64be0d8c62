"""The listening socket: it accepts connections only while the process has files left for everything else."""

from __future__ import annotations

import contextlib
import resource
import socket
import sys
from collections.abc import Callable
from typing import Any

from server.http.errors import OnRefused, Refusal, error_bytes, too_many_connections
from server.http.middleware import new_request_id

BACKLOG = 2048
"""Connections that may wait to be accepted."""
SPARE_FILES = 256
"""File descriptors for everything but connections: the engine, its socket, the workers that check grammars."""


class Listener(socket.socket):
    """A listening socket that answers 503 to connections for which there are too few file descriptors.

    The system gives out the lowest free descriptor, so a connection's own number tells how many files are open. This
    holds for connections in a TLS handshake as well, of which no protocol knows yet.
    """

    highest: int = sys.maxsize
    """Connections with a higher descriptor are refused."""
    on_refused: OnRefused | None = None
    """Called for each refusal."""
    tls = False
    """Connections begin with a handshake, so that no answer can be sent to one that is refused."""

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection. Raises BlockingIOError where there is none, or the next one has been refused."""
        connection, address = super().accept()
        if connection.fileno() <= self.highest:
            return connection, address
        self._refuse(connection)
        raise BlockingIOError

    def _refuse(self, connection: socket.socket) -> None:
        error, request_id = too_many_connections(), new_request_id()
        with connection, contextlib.suppress(OSError):
            connection.setblocking(False)
            if not self.tls:
                connection.send(error_bytes(error, request_id))
            connection.recv(65536)  # else closing resets the connection, and the answer may be lost
        if self.on_refused is not None:
            self.on_refused(Refusal(request_id, error.status, error.code or "unknown"))


def raise_file_limit(connections: int, warn: Callable[..., None]) -> int:
    """Allows this process a file for each connection, as far as the system lets it.

    Returns the highest descriptor that a connection may have. warn: called, like Logger.warning, where the system
    allows fewer connections.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + SPARE_FILES
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft < wanted:
        warn("max_connections needs %d open files, but this process may have only %d", wanted, soft)
    return soft - min(SPARE_FILES, soft // 2)
