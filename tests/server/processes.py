"""Real server processes for tests, on a port of their own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import httpx


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ServerProcess:
    """A running `lightcone serve`."""

    def __init__(self, module: list[str], *flags: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", *module, "--port", str(self.port), *flags],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self._closed = False

    def wait_until_ready(self, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended: {self.errors()}")
            try:
                if httpx.get(f"{self.url}/ready", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError("the server did not become ready")

    def errors(self) -> str:
        """Everything on standard error; only once the process has ended, or is about to."""
        self._closed = True
        return self.process.communicate(timeout=20)[1]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        if not self._closed:
            self.errors()


@contextmanager
def server(module: list[str], *flags: str, ready: bool = True) -> Iterator[ServerProcess]:
    process = ServerProcess(module, *flags)
    try:
        if ready:
            process.wait_until_ready()
        yield process
    finally:
        process.close()


def fake(mode: str, *flags: str, ready: bool = True) -> AbstractContextManager[ServerProcess]:
    """A real server with the fake engine process behind it."""
    return server(["tests.serve_with_fake_engine", mode], *flags, ready=ready)
