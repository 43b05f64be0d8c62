"""Commands in a terminal of their own."""

from __future__ import annotations

import codecs
import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.clients.conftest import KEY
from tests.http_helpers import ROOT, plain_environment

LIGHTCONE = (sys.executable, "-m", "server")
COMMAND = (*LIGHTCONE, "generate")


def environment(url: str | None, **more: str) -> dict[str, str]:
    server = {} if url is None else {"LIGHTCONE_URL": url, "LIGHTCONE_API_KEY": KEY}
    return {**plain_environment(), "PYTHONPATH": str(ROOT), **server, **more}


class Terminal:
    """The command in a terminal of its own."""

    def __init__(
        self, url: str | None, *arguments: str, size: tuple[int, int] = (24, 80), command: str = "generate"
    ) -> None:
        self.master, slave = pty.openpty()
        termios.tcsetwinsize(slave, size)
        self.process = subprocess.Popen(
            [*LIGHTCONE, command, *arguments],
            cwd=ROOT, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env=environment(url, TERM="xterm-256color", COLORTERM="truecolor"),
            # A suite that runs in the background ignores Ctrl-C, and its children would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        os.close(slave)
        self.output = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def read(self, until: str | None = None, seconds: float = 60) -> str:
        """Everything written so far: to the end of the command, or until some text has appeared."""
        deadline = time.monotonic() + seconds
        while until is None or until not in self.output:
            assert time.monotonic() < deadline, self.output
            if not select.select([self.master], [], [], 0.05)[0]:
                continue
            try:
                data = os.read(self.master, 65536)
            except OSError:  # the other end is closed
                break
            if not data:
                break
            self.output += self._decoder.decode(data)
        return self.output

    def type(self, text: str) -> None:
        """Types on its keyboard, and forgets what was written before."""
        self.output = ""
        os.write(self.master, text.encode())

    def interrupt(self) -> None:
        """What Ctrl-C does."""
        self.output = ""
        os.killpg(self.process.pid, signal.SIGINT)

    def interrupt_reading(self, until: str) -> None:
        """Ctrl-C while it reads a line, until some text has appeared.

        Python's reader notices a signal that comes just before it begins to wait only with the next key or signal.
        """
        for _ in range(30):
            self.interrupt()
            with contextlib.suppress(AssertionError):
                self.read(until, seconds=2)
                return
        raise AssertionError(f"Ctrl-C had no effect: {self.output!r}")

    def end_input(self) -> str:
        """Ctrl-D until the command has ended; what it wrote last.

        A key that comes just before the line's reader has changed the terminal's mode is lost with that change.
        """
        for _ in range(30):
            self.type("\x04")
            with contextlib.suppress(AssertionError):
                return self.read(seconds=2)
        raise AssertionError(f"Ctrl-D had no effect: {self.output!r}")

    def close(self) -> int:
        """The exit status, once everything has been read."""
        return self.process.wait(20)


@contextmanager
def terminal(
    url: str | None, *arguments: str, size: tuple[int, int] = (24, 80), command: str = "generate"
) -> Iterator[Terminal]:
    running = Terminal(url, *arguments, size=size, command=command)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()
        os.close(running.master)


def plain(output: str) -> str:
    """What a terminal would show last, near enough: escapes taken out."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output).replace("\r\n", "\n")
