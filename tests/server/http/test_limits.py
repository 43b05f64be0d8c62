"""Overload and slow clients, against real server processes: what is bounded, and what those beyond a bound are told."""

from __future__ import annotations

import json
import signal
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.processes import ServerProcess, fake, wait_for

LONG: dict[str, Any] = {"prompt": "x", "max_tokens": 240}
"""About 2.5 s of the steady engine."""


def request(path: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


@contextmanager
def connection(server: ServerProcess, receive_buffer: int | None = None) -> Iterator[socket.socket]:
    with socket.socket() as client:
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.settimeout(20)
        client.connect(("127.0.0.1", server.port))
        yield client


def read_to_end(client: socket.socket) -> bytes:
    answer = b""
    while part := client.recv(65536):
        answer += part
    return answer


def established(server: ServerProcess, client: socket.socket) -> bool:
    """The server's end of this connection still exists."""
    ours, theirs = (f":{port:04X}" for port in (client.getsockname()[1], server.port))
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[1].endswith(theirs) and row[2].endswith(ours) for row in rows)


def test_a_full_queue_answers_429_at_once_and_says_when_to_come_back() -> None:
    """Whoever cannot be served must learn it while there is time to ask elsewhere."""
    with fake("steady", "--max-running", "2", "--max-queued-requests", "2") as server:
        clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(4)]
        for client in clients:
            client.sendall(request("/v1/completions", LONG))
        wait_for("a full queue", lambda: server.metric("requests_running") == 4)
        with httpx.Client(base_url=server.url) as http:
            http.get("/health")
            started = time.monotonic()
            refused = http.post("/v1/completions", json=LONG)
            took = time.monotonic() - started
            probes = [http.get(path).status_code for path in ("/health", "/ready", "/metrics")]
        assert refused.status_code == 429
        assert refused.json()["error"] == {
            "message": "Too many requests are waiting; try again shortly.", "type": "rate_limit_error", "param": None,
            "code": "queue_full",
        }  # fmt: skip
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.headers["x-should-retry"] == "true"
        assert took < 0.5  # 0.1 s on a machine of its own: tools/overload.py measures it
        assert probes == [200, 200, 200], "a full server is healthy, and ready: its queue moves"
        assert server.metric("requests_rejected_total", 'reason="queue_full"') == 1
        for client in clients:
            client.close()
        wait_for("the queue to empty", lambda: server.metric("requests_running") == 0)
        # A place is free once the engine, too, has let go of the request: a moment after its connection has.
        wait_for("a place", lambda: server.complete(max_tokens=5).status_code == 200)


def test_a_queue_is_full_in_tokens_too() -> None:
    """A few huge prompts wait as long as many small ones."""
    with fake("mute", "--max-queued-tokens", "500") as server, connection(server) as client:
        ids = [9] * 200
        client.sendall(request("/v1/completions", {"prompt": [ids, ids], "max_tokens": 4}))
        more = partial(httpx.post, f"{server.url}/v1/completions", json={"prompt": ids, "max_tokens": 4}, timeout=1)
        wait_for("it to wait", lambda: more().status_code == 429)


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_that_takes_too_long_is_ended_and_told(stream: bool) -> None:
    """A client behind a proxy that gave up long ago must not hold a place for ever."""
    with fake("steady", "--request-timeout", "0.5") as server:
        started = time.monotonic()
        response = server.complete(max_tokens=240, stream=stream)
        assert 0.4 < time.monotonic() - started < 2
        assert response.status_code == (200 if stream else 504)
        last = [line for line in response.text.splitlines() if line][-1].removeprefix("data: ")
        assert json.loads(last)["error"]["code"] == "request_timeout"
        wait_for("its place to be free", lambda: server.metric("requests_running") == 0, 2)


def test_answers_do_not_wait_for_acknowledgements() -> None:
    """A socket that was not told so holds every second packet back for 40 ms: each answer, and chunks of streams."""
    took: list[float] = []
    with fake("echo") as server, httpx.Client(base_url=server.url) as http:
        for _ in range(20):
            started = time.monotonic()
            http.get("/version")
            took.append(time.monotonic() - started)
    assert statistics.median(took) < 0.03


@pytest.mark.parametrize("stream", [True, False])
def test_a_reader_that_takes_nothing_is_cut_off(stream: bool) -> None:
    """Each would otherwise hold megabytes and a connection until the operator restarts the server."""
    with fake("steady", "--stream-stall-timeout", "1", "--max-running", "64") as server:
        body = {"prompt": "x", "max_tokens": 240, "n": 64, "logprobs": 20, "stream": stream}
        with connection(server, receive_buffer=4096) as client:
            client.sendall(request("/v1/completions", body))
            status = 499 if stream else 200
            wait_for("the work to end", lambda: server.metric("requests_total", f'status="{status}"') == 1)
            assert established(server, client) or stream
            wait_for("the connection to be dropped", lambda: not established(server, client), 15)
        assert server.complete(max_tokens=5).status_code == 200


def test_a_body_that_drips_is_given_up() -> None:
    """A thousand of them would hold a thousand connections."""
    with fake("echo", "--body-timeout", "0.5") as server, connection(server) as client:
        client.sendall(request("/v1/completions", {"prompt": "x" * 1000})[:-500])
        answer = read_to_end(client)
        assert answer.startswith(b"HTTP/1.1 400")
        assert b"body_timeout" in answer
        assert b"\r\nconnection: close" in answer.lower()


def test_an_answer_that_has_begun_is_not_followed_by_another() -> None:
    """A proxy would give the second one to whoever asks next on that connection."""
    with fake("mute", "--max-running", "1", "--max-queued-requests", "0") as server, connection(server) as client:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        with connection(server) as busy:
            busy.sendall(request("/v1/completions", LONG))
            wait_for("a full server", lambda: short(server).status_code == 429)
            client.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")  # is refused before its body comes
            answer = client.recv(65536)
            client.sendall(b"no chunk at all\r\n")
            answer += read_to_end(client)
        assert answer.startswith(b"HTTP/1.1 429")
        assert answer.count(b"HTTP/1.1 ") == 1


def short(server: ServerProcess) -> httpx.Response:
    return server.http.post(f"{server.url}/v1/completions", json=LONG, timeout=1)


def test_a_drain_serves_on_then_refuses_then_finishes_and_leaves() -> None:
    """So a rolling restart loses no request: the balancer has time to notice, and what began is finished."""
    with fake("steady", "--drain-delay", "1", "--drain-timeout", "30") as server:
        texts: list[str] = []

        def read() -> None:
            texts.append(server.complete(max_tokens=240, stream=True).text)

        reader = threading.Thread(target=read)
        reader.start()
        wait_for("the stream", lambda: server.metric("requests_running") == 1)
        server.process.send_signal(signal.SIGTERM)
        wait_for("unreadiness", lambda: httpx.get(f"{server.url}/ready").status_code == 503, 0.5)
        assert server.complete(max_tokens=2).status_code == 200, "a balancer that has not noticed yet sends on"
        wait_for("refusals", lambda: server.complete(max_tokens=2).status_code == 503, 2)
        refused = server.complete(max_tokens=2)
        assert (refused.headers["connection"], refused.headers["retry-after"]) == ("close", "1")
        assert httpx.get(f"{server.url}/health").json()["status"] == "draining"
        reader.join(20)
        assert texts[0].rstrip().endswith("data: [DONE]")
        assert server.process.wait(5) == 0


def test_there_are_files_for_every_connection() -> None:
    """With the usual 1024 a server would stop accepting anybody, probes included, long before its own limit."""
    with fake("echo", "--max-connections", "2000") as server:
        rows = Path(f"/proc/{server.process.pid}/limits").read_text().splitlines()
        soft, hard = next(row for row in rows if row.startswith("Max open files")).split()[3:5]
        enough = 2000 + 200
        assert "unlimited" in (soft, hard) or int(soft) >= min(enough, int(hard))
