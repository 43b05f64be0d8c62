"""Starts `lightcone serve` as a child process, waits until it is ready and stops it.

Uses the standard library only, so that any program can import it at no cost. The child runs `python -m
server.child_server OPTION...`: `lightcone serve` that also leaves when its standard input ends.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

HOST = "127.0.0.1"
MODULE = ("server.child_server",)
POLL_SECONDS = 0.02
PORT_SECONDS = 60.0
"""Longest wait for a server to log its port; it does so before it loads the model."""
STOP_SECONDS = 5.0

_ROOT = str(Path(__file__).resolve().parents[1])


class ServerStartError(Exception):
    """A server did not become ready. The message is one line that continues "the server ..."."""


class ChildServer:
    """One `lightcone serve` process on a port of this machine. As a context manager it is stopped at the end.

    The process is in a session of its own, so an interrupt from the terminal does not reach it. It leaves when its
    standard input ends, so it does not outlive this process, even if this one is killed.
    """

    def __init__(
        self,
        options: Sequence[str] = (),
        *,
        port: int = 0,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
        module: Sequence[str] = MODULE,
        python_options: Sequence[str] = (),
        before_start: Callable[[], None] | None = None,
    ) -> None:
        """Starts the process.

        options: of `lightcone serve`. port: 0 lets the system choose. env: the whole environment (default: this
        process's). log: a file that standard error is appended to (default: a temporary one). module: the words
        after `python -m`, a module that ends in `main` of this one. before_start: runs in the child before its program
        does, to limit its resources.
        """
        # Read with os.pread at absolute offsets, so that reading never moves where the child writes.
        self._log = tempfile.TemporaryFile() if log is None else log.open("ab+")  # noqa: SIM115
        self._log_start = os.fstat(self._log.fileno()).st_size
        self._port: int | None = None
        # -P: never a `server` package that may lie in the current directory, but the one of this file.
        self.command = [sys.executable, *python_options, "-P", "-m", *module]
        self.command += ["--host", HOST, "--port", str(port), *options]
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            env=_with_packages(os.environ if env is None else env),
            start_new_session=True,
            preexec_fn=before_start,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id of the API process."""
        return self.process.pid

    @property
    def port(self) -> int:
        """The port it listens on. Waits until it is known. Raises ServerStartError."""
        deadline = time.monotonic() + PORT_SECONDS
        while (found := self._find_port()) is None:
            self._check(deadline, PORT_SECONDS)
            time.sleep(POLL_SECONDS)
        return found

    @property
    def url(self) -> str:
        """The base URL, without a path. Waits until it is known. Raises ServerStartError."""
        return f"http://{HOST}:{self.port}"

    @property
    def ready(self) -> bool:
        """Whether it accepts new requests now."""
        return self._ask()[0]

    def wait_ready(self, seconds: float, on_loading: Callable[[dict[str, Any]], None] = lambda state: None) -> float:
        """Waits until it accepts requests; returns the seconds that took. Raises ServerStartError.

        on_loading: told how far the model is, as /ready does it.
        """
        started = time.monotonic()
        while True:
            ready, body = self._ask()
            if ready:
                return time.monotonic() - started
            if body.get("loading") is not None:
                on_loading(body["loading"])
            self._check(started + seconds, seconds)
            time.sleep(POLL_SECONDS)

    def log_text(self) -> str:
        """Everything this process has written to standard error so far."""
        size = os.fstat(self._log.fileno()).st_size - self._log_start
        return os.pread(self._log.fileno(), size, self._log_start).decode("utf-8", "replace")

    def stop(self, seconds: float = STOP_SECONDS) -> int:
        """Asks it to leave (SIGTERM), and kills it if it is still there after `seconds`. Returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
        return self.kill()

    def kill(self) -> int:
        """Kills its process group if it still runs, and frees what belongs to it. Returns the exit status."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        status = self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()
        self._find_port()  # the URL is known after the end, too
        self._log.close()
        return status

    def _ask(self) -> tuple[bool, dict[str, Any]]:
        """Whether it is ready, and what else it says of that."""
        port = self._find_port()
        if port is None:
            return False, {}
        connection = http.client.HTTPConnection(HOST, port, timeout=5)
        try:
            connection.request("GET", "/ready")
            response = connection.getresponse()
            return response.status == 200, json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError):
            return False, {}
        finally:
            connection.close()

    def _find_port(self) -> int | None:
        """The port in the log line that names it; None while there is no such line."""
        if self._port is None and not self._log.closed:
            for line in self.log_text().split("\n"):
                with contextlib.suppress(ValueError):
                    fields = json.loads(line)
                    if isinstance(fields, dict) and isinstance(fields.get("port"), int):
                        self._port = fields["port"]
                        break
        return self._port

    def _check(self, deadline: float, seconds: float) -> None:
        """Raises ServerStartError if the process has ended or the deadline has passed."""
        if self._log.closed or self.process.poll() is not None:
            lines = [] if self._log.closed else self.log_text().split("\n")
            reason = next((line for line in reversed(lines) if line.strip()), f"exit status {self.process.returncode}")
            raise ServerStartError(f"did not start: {reason.removeprefix('lightcone: error: ')}")
        if time.monotonic() > deadline:
            raise ServerStartError(f"was not ready within {seconds:g} s")


def _with_packages(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment in which a child finds the packages beside this one, wherever it starts."""
    paths = [_ROOT, *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)}


def main(options: Sequence[str] | None = None) -> int:
    """The child process: `lightcone serve` until it is told to stop or its standard input ends."""
    from server.__main__ import main as lightcone

    threading.Thread(target=_leave_at_end_of_input, daemon=True).start()
    _log_the_port()
    return lightcone(["serve", *(sys.argv[1:] if options is None else options)])


def _leave_at_end_of_input() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _log_the_port() -> None:
    """Lets the server's first log line through, which names the port, whatever `--log-level` says."""
    from server.serve import logger

    def once(record: logging.LogRecord) -> bool:
        logger.removeFilter(once)
        logger.setLevel(logging.NOTSET)
        return True

    logger.setLevel(logging.INFO)
    logger.addFilter(once)


if __name__ == "__main__":
    sys.exit(main())
