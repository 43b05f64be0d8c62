"""Logging: one JSON object a line on standard error."""

from __future__ import annotations

import logging
import sys
import time
from datetime import UTC, datetime

from server.http.json_codec import encode_json


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON; `extra={"fields": {...}}` is merged in."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON, without the line end."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return encode_json(line).decode()


def set_up(level: str) -> None:
    """Sends this server's and uvicorn's logs to standard error. Uvicorn's own chatter is left out."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name, threshold in (("lightcone", level.upper()), ("uvicorn", "WARNING"), ("asyncio", "WARNING")):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(threshold)
        logger.propagate = False


class OncePerSecond:
    """Says whether a line that may be repeated without end is to be logged now."""

    def __init__(self) -> None:
        self.missed = 0
        """Lines that were not logged before the last one that was."""
        self._skipped, self._next = 0, 0.0

    def due(self) -> bool:
        """Whether a second has passed since the line was last logged. Counts the line if not."""
        now = time.monotonic()
        if now < self._next:
            self._skipped += 1
            return False
        self.missed, self._skipped, self._next = self._skipped, 0, now + 1.0
        return True
