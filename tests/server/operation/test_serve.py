"""The server as a process: signals, draining, start-up failures, slow clients."""

from __future__ import annotations

import ast
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.fakes import TEXT
from tests.server.processes import ServerProcess, descendants, fake, gone, wait_for


@contextmanager
def hangups(handling: signal.Handlers) -> Iterator[None]:
    """How the servers started meanwhile find SIGHUP. Tests that run under nohup would pass on that it is ignored."""
    before = signal.signal(signal.SIGHUP, handling)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_server_cleanly(number: int) -> None:
    with hangups(signal.SIG_DFL), fake("echo") as server:
        assert server.complete().json()["choices"][0]["text"] == TEXT
        engines = descendants(server.process.pid)
        assert engines
        server.process.send_signal(number)
        errors = server.errors()
        assert server.process.returncode == 0
        assert "Traceback" not in errors
        assert all(map(gone, engines)), "an engine was orphaned"
        assert all(json.loads(line)["level"] == "info" for line in errors.splitlines())


def test_a_drain_lets_streams_finish_or_tells_them(tmp_path: Path) -> None:
    """The listener stays open meanwhile, so that probes and refusals are answered."""
    with fake("slow", "--drain-timeout", "1.5") as server:
        lines: list[str] = []
        started = threading.Event()

        def read() -> None:
            body = {"prompt": "x", "stream": True}
            with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=20) as response:
                for line in response.iter_lines():
                    lines.append(line)
                    started.set()

        reader = threading.Thread(target=read)
        reader.start()
        assert started.wait(10)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert httpx.get(f"{server.url}/health").json()["status"] == "draining"
        assert httpx.get(f"{server.url}/ready").status_code == 503
        refused = server.complete()
        assert (refused.status_code, refused.headers["connection"]) == (503, "close")
        reader.join(10)
        last = [line for line in lines if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
        server.errors()
        assert server.process.returncode == 0


def test_a_second_signal_leaves_at_once() -> None:
    with fake("slow", "--drain-delay", "30") as server:
        engines = descendants(server.process.pid)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(3)
        assert server.process.returncode == 128 + signal.SIGTERM
        time.sleep(0.2)
        assert all(map(gone, engines))


def test_a_terminal_that_goes_lets_streams_finish() -> None:
    """The shell and the kernel both send SIGHUP, so that it often comes twice."""
    with hangups(signal.SIG_DFL), fake("steady") as server:
        texts: list[str] = []
        reader = threading.Thread(target=lambda: texts.append(server.complete(max_tokens=100, stream=True).text))
        reader.start()
        wait_for("the stream", lambda: server.metric("requests_running") == 1)
        server.process.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        server.process.send_signal(signal.SIGHUP)
        reader.join(20)
        assert texts[0].endswith("data: [DONE]\n\n")
        assert server.process.wait(10) == 0


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    """Whoever starts a server with nohup wants it to stay."""
    with hangups(signal.SIG_IGN), fake("echo") as server:
        server.process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert server.complete().status_code == 200


def test_a_killed_server_leaves_no_engine() -> None:
    with fake("echo") as server:
        engines = descendants(server.process.pid)
        server.process.kill()
        server.process.wait(5)
        deadline = time.monotonic() + 5
        while not all(map(gone, engines)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert all(map(gone, engines))


def test_a_model_that_cannot_load_is_one_line_and_a_failure() -> None:
    with fake("fail", ready=False) as server:
        errors = server.errors()
        assert server.process.returncode == 1
        plain = [line for line in errors.splitlines() if not line.startswith("{")]
        assert plain == ["lightcone: error: the weights are damaged"]


def test_an_engine_that_keeps_failing_ends_the_server() -> None:
    """Better an exit that an orchestrator sees than a server that is never ready."""
    with fake("crash") as server:
        for _ in range(3):
            server.wait_until_ready()
            assert server.complete().status_code == 500
        errors = server.errors()
        assert server.process.returncode == 1
        assert "lightcone: error: the engine failed too often" in errors


def test_a_crash_in_mid_stream_ends_the_stream_with_an_error() -> None:
    with fake("echo") as server:
        body = {"prompt": "x", "stream": True, "cache_salt": "crash"}
        text = httpx.post(f"{server.url}/v1/completions", json=body, timeout=20).text
        last = [line for line in text.splitlines() if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_failed"
        server.wait_until_ready()
        assert server.complete().json()["choices"][0]["text"] == TEXT
        assert 'lightcone_engine_restarts_total{model="builtin"} 1.0' in httpx.get(f"{server.url}/metrics").text


def test_a_port_in_use_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with fake("echo", "--port", str(taken.getsockname()[1]), ready=False) as server:
            errors = server.errors()
            assert server.process.returncode == 2
            assert errors.startswith("lightcone: error: cannot listen on 127.0.0.1 port")
            assert errors.count("\n") == 1


def connect(server: ServerProcess) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def test_connections_that_send_nothing_or_drip_are_closed() -> None:
    """A few hundred of them would otherwise hold every socket the server has."""
    with fake("echo", "--header-timeout", "0.5") as server:
        with connect(server) as silent, connect(server) as slow:
            slow.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
            assert silent.recv(100) == b""
            assert slow.recv(100) == b""
        with connect(server) as again:
            for _ in range(2):
                again.sendall(b"HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n")
                assert again.recv(4096).startswith(b"HTTP/1.1 200"), "an idle connection is kept"
                time.sleep(0.8)
            again.sendall(b"GET /health HTT")
            assert again.recv(100) == b""


def test_connections_beyond_the_limit_are_told_so() -> None:
    with fake("echo", "--max-connections", "3") as server:
        with connect(server), connect(server), connect(server):
            time.sleep(0.1)
            with connect(server) as beyond:
                answer = beyond.recv(4096)
                assert answer.startswith(b"HTTP/1.1 503 Service Unavailable")
                assert b"too_many_connections" in answer
        assert server.complete().status_code == 200


def test_the_checks_are_not_asserts() -> None:
    """They must hold under `python -O`, too."""
    code = "import sys; from server.__main__ import main; sys.exit(main(['serve', '--port', '70000']))"
    ended = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    for path in Path(__file__).parents[3].joinpath("server").rglob("*.py"):
        tree = ast.parse(path.read_text())
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.Assert)], path
