"""What the engine process writes, as records of this process's log: all of a server's lines then have one form.

The engine's own log comes as JSON lines; anything else (a library's warning, the last words of a crash) as it is.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Self

import msgspec

logger = logging.getLogger("lightcone.engine")

MAX_LINE = 2**20
"""Bytes; a longer line is left out."""
LAST_WORDS_SECONDS = 0.5
"""Time for what an engine wrote before it ended to be read."""


class Line(msgspec.Struct, frozen=True):
    """One line of the engine's log, as `engine.process` writes it."""

    time: float
    """Seconds since the epoch."""
    level: int
    logger: str
    message: str
    traceback: str | None = None


class Output:
    """A pipe for a child's standard output and standard error, and the task that logs what comes through it.

    It is no pipe of asyncio's subprocess, whose `wait` would go on for as long as anybody holds the other end.
    """

    def __init__(self, write_end: int, transport: asyncio.ReadTransport, reader: asyncio.StreamReader) -> None:
        self.write_end = write_end
        """For the child; closed by `hand_over`."""
        self._transport = transport
        self._task = asyncio.create_task(_log_lines(reader))

    @classmethod
    async def open(cls) -> Self:
        """Makes the pipe. Raises OSError."""
        read_end, write_end = os.pipe()
        reader = asyncio.StreamReader(limit=MAX_LINE)
        loop = asyncio.get_running_loop()
        file = os.fdopen(read_end, "rb", 0)
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), file)
        return cls(write_end, transport, reader)

    def hand_over(self) -> None:
        """The child has its end, or will never have one. Idempotent."""
        end, self.write_end = self.write_end, -1
        if end >= 0:
            os.close(end)

    async def close(self) -> None:
        """Logs what is still there and ends. Idempotent."""
        self.hand_over()
        await asyncio.wait({self._task}, timeout=LAST_WORDS_SECONDS)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._transport.close()


async def _log_lines(reader: asyncio.StreamReader) -> None:
    while True:
        try:
            line = await reader.readline()
        except ValueError:  # longer than MAX_LINE
            continue
        if not line:
            return
        _log(line)


def _log(raw: bytes) -> None:
    try:
        line = msgspec.json.decode(raw, type=Line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        text = raw.decode("utf-8", "replace").rstrip()
        if text:
            logger.warning("%s", text)
        return
    if not logger.isEnabledFor(line.level):
        return
    record = logging.makeLogRecord(
        {"name": line.logger, "levelno": line.level, "levelname": logging.getLevelName(line.level),
         "msg": line.message, "created": line.time}
    )  # fmt: skip
    if line.traceback is not None:
        record.fields = {"traceback": line.traceback}
    logger.handle(record)
