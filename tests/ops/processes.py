"""Programs that the operation tests run: replicas, the load balancer, Prometheus. Nothing is installed here."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import httpx
import pytest

from server.child_server import ChildServer, ServerStartError
from tests.http_helpers import ROOT, metric_total, plain_environment, wait_for

CONFIGS = ROOT / "configs"

DRAIN_DELAY = 6
"""Seconds, as in docker-compose.yml."""
START_SECONDS = 60.0
REPLICA_OPTIONS = (
    "--threads=1", "--calibration-seconds=0", "--max-running=8", "--max-queued-requests=32", "--kv-cache-tokens=16384",
    f"--drain-delay={DRAIN_DELAY}",
)  # fmt: skip


def program(name: str, package: str) -> str:
    """The path of an installed program; skips the test where there is none."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        pytest.skip(f"{name} is not installed (Debian's package `{package}` has it)")
    return path


def free_port() -> int:
    """A port below the range that outgoing connections take theirs from, so that a restarted replica gets it back."""
    for port in random.sample(range(20000, 30000), 50):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise RuntimeError("no free port between 20000 and 30000")


class Process:
    """A program whose output goes to a file."""

    def __init__(self, argv: list[str], log: Path, env: dict[str, str] | None = None) -> None:
        self._argv, self.log, self._env = argv, log, plain_environment("LB_") | (env or {})
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, or starts it again."""
        with self.log.open("ab") as out:
            self._popen = subprocess.Popen(
                self._argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=self._env
            )

    @property
    def running(self) -> bool:
        """Started and not ended."""
        return self._popen is not None and self._popen.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the program itself, not to what it started."""
        assert self._popen is not None
        self._popen.send_signal(number)

    def wait(self, seconds: float) -> int:
        """Its exit status. Fails the test if it does not end in time."""
        assert self._popen is not None
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self._argv[0]} did not end within {seconds:g} s; its log ends with:\n{self.tail()}")

    def stop(self) -> None:
        """Ends it, whatever it takes."""
        if self._popen is None:
            return
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            if self.running:
                self._popen.send_signal(number)
                try:
                    self._popen.wait(3)
                except subprocess.TimeoutExpired:
                    continue
        self._popen.wait(3)

    def tail(self) -> str:
        """The end of its output."""
        return self.log.read_text(errors="replace")[-3000:]


class Replica:
    """`lightcone serve` on a port of its own, which it has again after a restart."""

    def __init__(self, directory: Path, number: int) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.address}"
        self._log = directory / f"replica-{number}.log"
        self._server: ChildServer | None = None

    def start(self) -> None:
        """Starts it, or starts it again."""
        if self._server is not None:
            self._server.kill()
        self._server = ChildServer(REPLICA_OPTIONS, port=self.port, env=plain_environment("LB_"), log=self._log)

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._server is not None and self._server.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the API process, not to what that has started."""
        assert self._server is not None
        self._server.process.send_signal(number)

    def wait(self, seconds: float) -> int:
        """Its exit status. Fails the test if it does not end in time."""
        assert self._server is not None
        try:
            return self._server.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the replica did not end within {seconds:g} s; its log ends with:\n{self.tail()}")

    def stop(self) -> None:
        """Ends it, whatever it takes."""
        if self._server is not None:
            self._server.stop(3)

    def wait_ready(self) -> None:
        """Returns once it takes work."""
        assert self._server is not None
        try:
            self._server.wait_ready(START_SECONDS)
        except ServerStartError as error:
            pytest.fail(f"the replica {error}; its log ends with:\n{self.tail()}")

    def metrics(self) -> str:
        """Its /metrics page."""
        return httpx.get(f"{self.url}/metrics", timeout=5).text

    def tail(self) -> str:
        """The end of its log."""
        return self._log.read_text(errors="replace")[-3000:]


class Balancer(Process):
    """HAProxy with the repository's own file; only the four addresses are others."""

    def __init__(self, directory: Path, replicas: tuple[str, str]) -> None:
        ports = free_port(), free_port()
        self.url = f"http://127.0.0.1:{ports[0]}"
        self.metrics_address = f"127.0.0.1:{ports[1]}"
        env = {
            "LB_LISTEN": f"127.0.0.1:{ports[0]}",
            "LB_METRICS": self.metrics_address,
            "LB_REPLICA_1": replicas[0],
            "LB_REPLICA_2": replicas[1],
        }
        argv = [program("haproxy", "haproxy"), "-db", "-f", str(CONFIGS / "haproxy.cfg")]
        super().__init__(argv, directory / "haproxy.log", env)

    def metrics(self) -> str:
        """HAProxy's own /metrics page."""
        return httpx.get(f"http://{self.metrics_address}/metrics", timeout=5).text

    def wait_in_rotation(self, count: int) -> None:
        """Returns once so many replicas take traffic."""

        def settled() -> bool:
            return metric_total(self.metrics(), "haproxy_server_status", 'proxy="replicas"', 'state="UP"') == count

        wait_for(f"{count} replicas in HAProxy's rotation", settled, 20)
