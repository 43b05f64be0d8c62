"""Requests made to break the server, against a real one under `python -O`: what protects it are no asserts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.server.http.hostile import AUTHORIZED, CASES, FLOODS, KEY, SMUGGLING, exchange
from tests.server.processes import ServerProcess, real

HEADERS = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}


@pytest.fixture(scope="session")
def target() -> Iterator[ServerProcess]:
    with real("--api-keys", KEY, "--kv-cache-tokens", "2048", optimise=True) as process:
        yield process
        assert "Traceback" not in process.log()


@pytest.fixture(autouse=True)
def alive(target: ServerProcess) -> Iterator[None]:
    """After whatever a test sent, others are still served."""
    yield
    assert httpx.get(f"{target.url}/v1/models", headers=HEADERS, timeout=10).status_code == 200


def check_refusal(answer: bytes) -> None:
    assert answer.startswith(b"HTTP/1.1 4"), answer[:200]
    assert answer.count(b"HTTP/1.1 ") == 1, "a second request was taken out of the first"
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nconnection: close" in head.lower()
    assert b"\r\nx-request-id: req-" in head.lower()
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("name", SMUGGLING)
def test_a_request_that_could_be_two_is_refused_and_the_connection_closed(target: ServerProcess, name: str) -> None:
    """Behind a proxy that reads it differently, one client's bytes would become another's request."""
    check_refusal(exchange(target.port, SMUGGLING[name]))


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_is_cut_off(target: ServerProcess, name: str) -> None:
    """One connection must not buy minutes of the server's time with kilobytes."""
    started = time.monotonic()
    answer = exchange(target.port, FLOODS[name])
    assert time.monotonic() - started < 5
    if answer:  # a reset may overtake the refusal
        check_refusal(answer)


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_body_is_a_refusal_that_names_its_field(target: ServerProcess, name: str) -> None:
    case = CASES[name]
    response = httpx.post(target.url + case.path, content=case.body, headers=HEADERS | case.headers, timeout=20)
    assert response.status_code == case.status, response.text
    if case.status == 200:
        assert response.json()["choices"]
        return
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 600
    assert all(leak not in error["message"] for leak in ("Traceback", "0x", ".py", "/home", "site-packages"))
    if case.param is not None:
        assert (error["param"] or "").startswith(case.param)


@pytest.mark.parametrize(
    ("path", "host"),
    [
        ("/v1/models", "localhost/health?"), ("/v1/models", "localhost/health#"), ("/v1/models?x=/health", "x"),
        ("/health/../v1/models", "x"), ("/health%2f..%2fv1/models", "x"), ("//health", "x"), ("/HEALTH", "x"),
        ("/v1/models;/health", "x"), ("http://x/health/../v1/models", "x"), ("/metrics", "localhost/ready?"),
    ],
)  # fmt: skip
def test_no_path_or_host_slips_past_the_keys(target: ServerProcess, path: str, host: str) -> None:
    """A check of a path that was put together from the Host header once opened a server like this one."""
    answer = exchange(target.port, f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 401"), answer[:200]


def test_requests_in_a_row_are_answered_in_a_row(target: ServerProcess) -> None:
    """Pipelining is legal; only ambiguity is refused."""
    one = f"GET /version HTTP/1.1\r\nHost: x\r\n{AUTHORIZED}"
    answer = exchange(target.port, f"{one}\r\n{one}Connection: close\r\n\r\n".encode())
    assert answer.count(b"HTTP/1.1 200 ") == 2


def test_what_is_turned_away_is_counted_and_logged(target: ServerProcess) -> None:
    exchange(target.port, SMUGGLING["no host"])
    page = httpx.get(f"{target.url}/metrics", headers=HEADERS, timeout=10).text
    assert 'lightcone_requests_rejected_total{model="builtin",reason="invalid_http"}' in page
    assert [line for line in target.log_lines("refused") if line["code"] == "invalid_http"]
