"""RankLink: a socket between rank 0 and one other rank, which carries frames of bytes in order."""

from __future__ import annotations

import socket

HEADER_BYTES = 4


class RankLink:
    """One end. A frame is its length in four bytes and its content."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    @property
    def fileno(self) -> int:
        """The socket's file descriptor, which a child can inherit."""
        return self._socket.fileno()

    def send(self, frame: bytes) -> None:
        """Sends a frame; waits while the other end has fallen behind by a socket's buffer."""
        self._socket.sendall(len(frame).to_bytes(HEADER_BYTES, "little") + frame)

    def receive(self) -> bytes | None:
        """Waits for the next frame. None: the other end is closed, or its process gone."""
        header = self._read(HEADER_BYTES)
        return None if header is None else self._read(int.from_bytes(header, "little"))

    def close(self) -> None:
        """Closes this end. Idempotent."""
        self._socket.close()

    def _read(self, count: int) -> bytes | None:
        buffer = bytearray(count)
        view, at = memoryview(buffer), 0
        while at < count:
            try:
                got = self._socket.recv_into(view[at:])
            except ConnectionError:
                return None
            if not got:
                return None
            at += got
        return bytes(buffer)


def link_pair() -> tuple[RankLink, RankLink]:
    """Both ends of a new link."""
    first, second = socket.socketpair()
    return RankLink(first), RankLink(second)
