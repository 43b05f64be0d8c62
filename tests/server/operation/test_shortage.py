"""Out of file descriptors, with real processes: what is refused, what still works, and how little of it is logged."""

from __future__ import annotations

import errno
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from server.http.errors import Unavailable, to_api_error
from server.operation.logs import OncePerSecond
from tests.server.processes import ServerProcess, fake, real, wait_for

FILES = 64


@pytest.fixture(params=["fake", "real"])
def small(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    start = fake("echo", files=FILES) if request.param == "fake" else real(files=FILES)
    with start as process:
        yield process


def connect(server: ServerProcess) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def check_health(client: socket.socket) -> None:
    client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = b""
    while not answer.endswith(b"}"):
        answer += client.recv(4096)
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_idle_connections_leave_files_for_the_rest(small: ServerProcess) -> None:
    """A server that could not open a file would accept nobody, write megabytes of log, and lose its engine for good."""
    served = connect(small)
    with ExitStack() as stack:
        stack.enter_context(served)
        idle = [stack.enter_context(connect(small)) for _ in range(120)]
        last = idle[-1].recv(4096)
        assert last.startswith(b"HTTP/1.1 503 Service Unavailable")
        assert b"too_many_connections" in last
        check_health(served)
        used = len(list(Path(f"/proc/{small.process.pid}/fd").iterdir()))
        assert used <= FILES - 16, "too few are left for another engine"
        time.sleep(3)
        check_health(served)
    lines = [json.loads(line) for line in small.log().splitlines()]
    assert len(lines) < 20
    assert not [line for line in lines if line["level"] == "error"]
    wait_for("an answer", lambda: small.complete(max_tokens=4).status_code == 200, 10)
    assert small.metric("requests_rejected_total", 'reason="too_many_connections"') > 50


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN])
def test_what_is_used_up_for_the_moment_is_a_503(number: int) -> None:
    """A client that tries again, or elsewhere, is served."""
    error = to_api_error(OSError(number, "used up"), None)  # type: ignore[arg-type]
    assert isinstance(error, Unavailable)
    assert error.headers["Retry-After"] == "1"


def test_a_line_that_repeats_is_logged_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("server.operation.logs.time.monotonic", lambda: now)
    limit = OncePerSecond()
    assert [limit.due() for _ in range(5)] == [True, False, False, False, False]
    now = 101.5
    assert limit.due()
    assert limit.missed == 4
