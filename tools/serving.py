"""A server of its own for the tools that measure one: started, watched from outside, stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

START_SECONDS = 120.0


class Served:
    """`lightcone serve` on a free port of this machine. A context manager: on the way out nothing of it is left."""

    def __init__(self, *flags: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = Path(tempfile.mkstemp(prefix="lightcone-", suffix=".log")[1])
        self._http = httpx.Client(base_url=self.url, timeout=10, trust_env=False)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "server", "serve", "--port", str(self.port), *flags],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def __enter__(self) -> Self:
        try:
            self.wait_ready(START_SECONDS)
        except BaseException:
            self._process.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._http.close()

    @property
    def pid(self) -> int:
        """The API process."""
        return self._process.pid

    @property
    def engine(self) -> int | None:
        """The engine process; None while there is none."""
        for pid in children(self.pid):
            try:
                if b"engine.process" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
            except OSError:
                continue
        return None

    @property
    def ready(self) -> bool:
        """Whether new work is welcome."""
        try:
            return self._http.get("/ready").status_code == 200
        except httpx.TransportError:
            return False

    def wait_ready(self, seconds: float) -> float:
        """Returns the seconds it took. Raises RuntimeError."""
        started = time.monotonic()
        while not self.ready:
            if self._process.poll() is not None:
                raise RuntimeError(f"the server ended; its log is {self.log}")
            if time.monotonic() - started > seconds:
                raise RuntimeError(f"the server was not ready within {seconds:g} s; its log is {self.log}")
            time.sleep(0.02)
        return time.monotonic() - started

    def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        lines = self._http.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"lightcone_{name}{{"))

    def stop(self, seconds: float = 30.0) -> int:
        """SIGTERM; returns the exit status."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(seconds)


def children(pid: int) -> list[int]:
    """Processes it started that still live."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


def rss_bytes(pid: int) -> int:
    """Resident memory of a process. 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0
