"""Real server processes for tests, each on a port of its own, and functions that look at processes from outside."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from server.child_server import MODULE, ChildServer, ServerStartError
from tests.http_helpers import metric_total, wait_for

__all__ = ["ServerProcess", "descendants", "fake", "gone", "real", "server", "wait_for"]

FAKE = "tests.serve_with_fake_engine"


def descendants(pid: int) -> list[int]:
    """The processes that it started, and those that these started."""
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
        # Made once, as it takes its time; a connection for each request, as most clients of these tests leave rudely.
        self.http = httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0), trust_env=False)
        self._child = ChildServer(
            flags,
            module=module,
            python_options=["-O"] if optimise else [],
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
            before_start=None if files is None else partial(resource.setrlimit, resource.RLIMIT_NOFILE, (files, files)),
        )
        self.process = self._child.process

    @property
    def port(self) -> int:
        """The port it listens on; waits until it does."""
        return self._child.port

    @property
    def url(self) -> str:
        """The base URL; waits until it is known."""
        return self._child.url

    def wait_until_ready(self, seconds: float = 60.0) -> float:
        """Returns the seconds it took."""
        try:
            return self._child.wait_ready(seconds)
        except ServerStartError as error:
            raise AssertionError(f"the server {error}: {self.log()}") from None

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
        return metric_total(self.http.get(f"{self.url}/metrics", timeout=10).text, f"lightcone_{name}", *labels)

    def log(self) -> str:
        """Everything on standard error so far."""
        return self._child.log_text()

    def log_lines(self, message: str) -> list[dict[str, Any]]:
        """The JSON lines with this message."""
        lines = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [line for line in lines if line["message"] == message]

    def errors(self) -> str:
        """Everything on standard error, once the process has ended."""
        self.process.wait(20)
        return self.log()

    def close(self) -> None:
        """Kills it if it still runs."""
        self._child.kill()
        self.http.close()


@contextmanager
def server(
    module: list[str],
    *flags: str,
    ready: bool = True,
    optimise: bool = False,
    env: dict[str, str] | None = None,
    files: int | None = None,
) -> Iterator[ServerProcess]:
    """A server for the length of a `with` block. module: as ChildServer takes it. files: see ServerProcess."""
    process = ServerProcess(module, *flags, optimise=optimise, env=env, files=files)
    try:
        if ready:
            process.wait_until_ready()
        yield process
    finally:
        process.close()


def fake(mode: str, *flags: str, ready: bool = True, **options: Any) -> AbstractContextManager[ServerProcess]:
    """A real server with the fake engine process behind it."""
    return server([FAKE, mode], *flags, ready=ready, **options)


def real(*flags: str, ready: bool = True, **options: Any) -> AbstractContextManager[ServerProcess]:
    """A real server with its real engine; by default the built-in model, on one thread, measuring nothing first."""
    return server([*MODULE], "--threads", "1", "--calibration-seconds", "0", *flags, ready=ready, **options)
