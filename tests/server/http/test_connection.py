"""What HTTP/1.1 allows a client to do with a connection, over raw sockets: forms of the target, HEAD, half a close."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.http.connection import _Connection
from tests.fakes import TEXT
from tests.server.processes import ServerProcess, fake, wait_for

GETS = (
    "/health",
    "/ping",
    "/ready",
    "/load",
    "/tokenizer_info",
    "/version",
    "/metrics",
    "/v1/models",
    "/v1/models/builtin",
    "/openapi.json",
    "/docs",
)


@pytest.fixture(scope="module")
def echo() -> Iterator[ServerProcess]:
    with fake("echo") as process:
        yield process


@pytest.fixture(scope="module")
def steady() -> Iterator[ServerProcess]:
    with fake("steady") as process:
        yield process


def parsed(target: str) -> h11.Request:
    """What the connection's parser makes of a request for this target."""
    connection = _Connection(h11.SERVER)
    connection.receive_data(f"GET {target} HTTP/1.1\r\nHost: other\r\n\r\n".encode())
    event = connection.next_event()
    assert isinstance(event, h11.Request)
    return event


def read_to_end(client: socket.socket) -> bytes:
    answer = b""
    while part := client.recv(65536):
        answer += part
    return answer


def completion(version: str = "1.1", **fields: object) -> bytes:
    body = json.dumps({"prompt": "x", "max_tokens": 100, **fields}).encode()
    head = f"POST /v1/completions HTTP/{version}\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def half_closing(server: ServerProcess, request: bytes) -> bytes:
    """The answer to a client that sends no more once its request is out."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        return read_to_end(client)


def exchange(server: ServerProcess, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(request)
        return read_to_end(client)


_PATHS = st.text("abc/.;%2~-_", max_size=20).map(lambda path: "/" + path)
_QUERIES = st.text("abc=&/:?%3", max_size=12)
_HOSTS = st.sampled_from(["x", "x:80", "user@x", "[::1]:1"])


@given(path=_PATHS, query=_QUERIES, host=_HOSTS, scheme=st.sampled_from(["http", "https", "HTTP"]))
def test_a_whole_url_is_read_as_its_path_and_host(path: str, query: str, host: str, scheme: str) -> None:
    """Whatever a URL holds after its host is the target, and its host is the Host (RFC 9112, 3.2.2)."""
    target = f"{path}?{query}"
    found = parsed(f"{scheme}://{host}{target}")
    assert found.target.decode() == parsed(target).target.decode() == target
    assert dict(found.headers)[b"host"] == host.encode()


@pytest.mark.parametrize(
    "target", ["http://x/version", "HTTP://other:80/version", "https://x/version?a=/b", "/version"]
)
def test_a_target_may_be_a_whole_url(echo: ServerProcess, target: str) -> None:
    """A server must accept it (RFC 9112, 3.2.2): clients that think they speak to a proxy send it."""
    answer = exchange(echo, f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 200 "), answer[:200]
    assert b'"version"' in answer


@pytest.mark.parametrize(("target", "status"), [("http://x", 200), ("http://x?y", 200), ("http:///version", 400)])
def test_a_url_without_a_path_is_the_root_and_one_without_a_host_is_none(
    echo: ServerProcess, target: str, status: int
) -> None:
    answer = exchange(echo, f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer[:200]


@pytest.mark.parametrize("path", GETS)
def test_head_is_get_without_a_body(echo: ServerProcess, path: str) -> None:
    """Monitors and load balancers ask with HEAD; a 405 counts as down."""
    answers = [
        exchange(echo, f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        for method in ("HEAD", "GET")
    ]
    (head, head_body), (get, get_body) = (answer.split(b"\r\n\r\n", 1) for answer in answers)
    assert head.startswith(b"HTTP/1.1 200 ")
    assert not head_body
    assert get_body
    assert {line.partition(b":")[0].lower() for line in head.split(b"\r\n")} == {
        line.partition(b":")[0].lower() for line in get.split(b"\r\n")
    }


def test_head_of_a_post_route_is_refused(echo: ServerProcess) -> None:
    answer = exchange(echo, b"HEAD /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 405 ")


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_sends_no_more_gets_its_answer(steady: ServerProcess, stream: bool, version: str) -> None:
    """`nc -N` and old proxies close their sending half when the request is out."""
    answer = half_closing(steady, completion(version, stream=stream))
    final = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert final.startswith(b"HTTP/1.1 200 ")
    assert (answer == final) is (version == "1.0"), "HTTP/1.0 knows no interim responses"
    text = final.decode()
    if stream:
        events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
        assert events[-1] == "[DONE]"
        said = "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])
    else:
        said = json.loads(text.partition("\r\n\r\n")[2])["choices"][0]["text"]
    assert said.startswith(TEXT)


def test_requests_in_a_row_before_the_end_are_all_answered(steady: ServerProcess) -> None:
    answer = half_closing(steady, completion(max_tokens=5) + completion(max_tokens=5) + completion(max_tokens=5))
    assert answer.count(b"HTTP/1.1 200 ") == 3


def test_a_request_that_ends_in_its_middle_gets_no_answer(echo: ServerProcess) -> None:
    assert half_closing(echo, completion()[:-3]) == b""
    assert half_closing(echo, b"GET /version HTTP/1.1\r\nHost: x\r\n") == b""


@pytest.mark.parametrize("first_half", [True, False])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_has_gone_is_noticed(steady: ServerProcess, stream: bool, first_half: bool) -> None:
    """Whether it has closed half of the connection or all of it looks the same until something is sent to it."""
    dropped = steady.metric("requests_total", 'status="499"')
    with socket.create_connection(("127.0.0.1", steady.port), timeout=20) as client:
        client.sendall(completion(stream=stream, max_tokens=240))
        wait_for("the work", lambda: steady.metric("requests_running") == 1)
        if first_half and stream:  # where nothing is sent meanwhile, the kernel finds out, after about a minute
            client.shutdown(socket.SHUT_WR)
            time.sleep(0.5)
    wait_for("the work to end", lambda: steady.metric("requests_running") == 0, 1.5)
    wait_for("it to be counted", lambda: steady.metric("requests_total", 'status="499"') == dropped + 1)


def test_a_client_that_has_gone_while_it_waits_is_noticed() -> None:
    """On a full server most of those who leave have not had a word yet: nothing may be done for them later."""
    with fake("mute") as server:
        for gone, stream in ((1, True), (2, False)):
            with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
                client.sendall(completion(stream=stream))
                time.sleep(0.2)
            wait_for("its leaving", lambda gone=gone: server.metric("requests_total", 'status="499"') >= gone, 2)


def test_half_closed_connections_leave_nothing_behind(steady: ServerProcess) -> None:
    """Neither a file nor a timer a connection."""

    def files() -> int:
        return len(list(Path(f"/proc/{steady.process.pid}/fd").iterdir()))

    before = files()
    threads = [
        threading.Thread(target=half_closing, args=(steady, completion(max_tokens=20, stream=n % 2 == 0)))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_for("the files to be closed", lambda: files() <= before + 1, 5)
