"""How a child process of the server lives: it ends with its parent, and logs lines that the API process reads."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading

import msgspec

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that this process gets when the thread that started it is gone."""


def leave_with_parent() -> None:
    """Ends the process at once when stdin closes: the parent keeps the other end open for as long as it lives."""

    def wait() -> None:
        # Not through sys.stdin: a thread inside its lock would make the interpreter's own exit fail.
        while os.read(0, 4096):
            pass
        os._exit(0)

    threading.Thread(target=wait, name="parent-watch", daemon=True).start()


def die_with_parent() -> None:
    """On Linux: has the kernel kill this process when its parent is gone, even if it is stopped and runs no thread.

    Only for a child that its parent's main thread starts.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class LineFormatter(logging.Formatter):
    """A record as one line of JSON, which the API process reads and logs in its own form."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON, without the line end."""
        line: dict[str, object] = {
            "time": record.created, "level": record.levelno, "logger": record.name, "message": record.getMessage(),
        }  # fmt: skip
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def set_up_log() -> None:
    """Sends all logs of this process, and Python's warnings, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(True)
