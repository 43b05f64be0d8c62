"""Logging on standard error: one JSON object a line for programs, or lines for people on a terminal."""

from __future__ import annotations

import logging
import os
import sys
import time
from datetime import UTC, datetime
from typing import Literal

from server.http.json_codec import encode_json

LogFormat = Literal["auto", "json", "text"]

_COLOURS = {logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "31"}
_DIM = "2"


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


class TextFormatter(logging.Formatter):
    """A record as a line for people: the time, the level, the message, and the fields that have a value.

    `extra={"text": ...}` stands in place of message and fields. What clients and models wrote is shown escaped.
    """

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """The record as text, without the line end. A traceback follows on lines of its own."""
        clock = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        level = self._painted(f"{record.levelname:<7}", _COLOURS.get(record.levelno, "32"))
        fields = dict(getattr(record, "fields", {}))
        traceback = fields.pop("traceback", None)
        if record.exc_info:
            traceback = self.formatException(record.exc_info)
        text = getattr(record, "text", None)
        if text is None:
            shown = [f"{name}={value}" for name, value in fields.items() if value is not None]
            text = _printable(record.getMessage())
            if shown:
                text += "  " + self._painted(_printable(" ".join(shown)), _DIM)
        line = f"{self._painted(clock, _DIM)} {level} {text}"
        return line if traceback is None else f"{line}\n{traceback}"

    def _painted(self, text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colour else text


def _printable(text: str) -> str:
    """On one line, and without characters that a terminal would take for commands."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def set_up(level: str, form: LogFormat = "json") -> None:
    """Sends this server's and uvicorn's logs, and Python's warnings, to standard error.

    form: `auto` is text on a terminal and JSON elsewhere. Uvicorn's own chatter is left out.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(form))
    logging.captureWarnings(True)
    thresholds = {"lightcone": level.upper(), "uvicorn": "WARNING", "asyncio": "WARNING", "py.warnings": "WARNING"}
    for name, threshold in thresholds.items():
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(threshold)
        logger.propagate = False


def follow_standard_error() -> None:
    """Lets the log follow `sys.stderr` to what now stands in its place."""
    for handler in logging.getLogger("lightcone").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)


def is_for_people(form: LogFormat) -> bool:
    """The log is text."""
    return form == "text" or (form == "auto" and sys.stderr.isatty())


def _formatter(form: LogFormat) -> logging.Formatter:
    terminal = sys.stderr.isatty()
    if not is_for_people(form):
        return JsonFormatter()
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return TextFormatter(colour=terminal and not plain)


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
