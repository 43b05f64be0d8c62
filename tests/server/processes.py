"""Real server processes for tests, on a port of their own, and what can be seen of them from outside."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(what: str, condition: Callable[[], bool], seconds: float = 20.0) -> float:
    """Waits for something outside of this process; returns the seconds it took. A server that cannot be reached is a
    no."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        try:
            if condition():
                return time.monotonic() - started
        except httpx.TransportError:
            pass
        time.sleep(0.01)
    raise AssertionError(f"waited {seconds:g} s in vain: {what}")


def descendants(pid: int) -> list[int]:
    """Every process that it started, and they."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def gone(pid: int) -> bool:
    """The process has ended; whether somebody has looked at its status does not matter."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


class ServerProcess:
    """A running `lightcone serve`."""

    def __init__(
        self,
        module: list[str],
        *flags: str,
        optimise: bool = False,
        env: dict[str, str] | None = None,
        files: int | None = None,
    ) -> None:
        """files: most files that it may have open; None: as many as this process."""
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        # Made once, as it takes its time; a connection for each request, as most clients of these tests leave rudely.
        self.http = httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0), trust_env=False)
        # A file and not a pipe: nobody reads while the server runs, and a full pipe would stop it.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, *(["-O"] if optimise else []), "-m", *module, "--port", str(self.port), *flags],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
            preexec_fn=None if files is None else partial(resource.setrlimit, resource.RLIMIT_NOFILE, (files, files)),
        )

    def wait_until_ready(self, seconds: float = 60.0) -> float:
        """Returns the seconds it took."""

        def ready() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended: {self.errors()}")
            return self.http.get(f"{self.url}/ready", timeout=5).status_code == 200

        return wait_for("the server to become ready", ready, seconds)

    @property
    def engine(self) -> int:
        """The engine's process id."""
        [pid] = [
            pid for pid in descendants(self.process.pid)
            if b"engine.process" in (line := Path(f"/proc/{pid}/cmdline").read_bytes()) or b"fake_engine" in line
        ]  # fmt: skip
        return pid

    def complete(self, **body: Any) -> httpx.Response:
        """One completion of a short prompt."""
        return self.http.post(f"{self.url}/v1/completions", json={"prompt": "x", "max_tokens": 100, **body})

    def metric(self, name: str, *labels: str) -> float:
        """The sum of a metric's samples that carry all of the labels, each as `name="value"`."""
        page = self.http.get(f"{self.url}/metrics", timeout=10).text
        lines = [line for line in page.splitlines() if line.startswith(f"lightcone_{name}{{")]
        return sum(float(line.rpartition(" ")[2]) for line in lines if all(label in line for label in labels))

    def log(self) -> str:
        """Everything on standard error so far."""
        return os.pread(self._log.fileno(), 2**24, 0).decode()

    def log_lines(self, message: str) -> list[dict[str, Any]]:
        """The JSON lines that say this."""
        lines = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [line for line in lines if line["message"] == message]

    def errors(self) -> str:
        """Everything on standard error, once the process has ended."""
        self.process.wait(20)
        return self.log()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(20)
        self.http.close()
        self._log.close()


@contextmanager
def server(
    module: list[str],
    *flags: str,
    ready: bool = True,
    optimise: bool = False,
    env: dict[str, str] | None = None,
    files: int | None = None,
) -> Iterator[ServerProcess]:
    process = ServerProcess(module, *flags, optimise=optimise, env=env, files=files)
    try:
        if ready:
            process.wait_until_ready()
        yield process
    finally:
        process.close()


def fake(mode: str, *flags: str, ready: bool = True, **options: Any) -> AbstractContextManager[ServerProcess]:
    """A real server with the fake engine process behind it."""
    return server(["tests.serve_with_fake_engine", mode], *flags, ready=ready, **options)


def real(*flags: str, ready: bool = True, **options: Any) -> AbstractContextManager[ServerProcess]:
    """A real server with its real engine; by default the built-in model, on one thread, measuring nothing first."""
    return server(["server", "serve"], "--threads", "1", "--calibration-seconds", "0", *flags, ready=ready, **options)
