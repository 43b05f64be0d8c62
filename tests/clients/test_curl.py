"""curl, as in every README: streams unbuffered, headers, one connection for many requests."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from typing import Any

import pytest

from tests.clients.conftest import KEY, QUESTION, STORY, SUM
from tests.http_helpers import events, plain_environment

CURL = shutil.which("curl")
pytestmark = pytest.mark.skipif(CURL is None, reason="curl is not installed")


def curl(*arguments: str) -> str:
    command = [CURL or "", "--silent", "--show-error", "--max-time", "60", "--noproxy", "*", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=plain_environment())
    return done.stdout


def posting(url: str, path: str, **body: Any) -> list[str]:
    auth = ["-H", f"Authorization: Bearer {KEY}", "-H", "Content-Type: application/json"]
    return [f"{url}{path}", *auth, "-d", json.dumps(body)]


def test_a_chat_as_in_the_readme(url: str) -> None:
    text = curl(*posting(url, "/v1/chat/completions", messages=[{"role": "user", "content": QUESTION}], temperature=0))
    assert "112" in json.loads(text)["choices"][0]["message"]["content"]


def test_a_stream_comes_as_it_forms_and_is_well_formed(url: str) -> None:
    command = [CURL or "", "-sN", "--noproxy", "*", *posting(
        url, "/v1/completions", prompt=STORY, stream=True, decoding="ar", max_tokens=200, ignore_eos=True
    )]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=plain_environment()) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        seen = time.monotonic()
        rest = process.stdout.read()
        took = time.monotonic() - seen
    assert first.startswith(b"data: {")
    assert took > 0.1, "200 autoregressive passes take longer than that: the stream was held back to its end"
    assert len(events((first + rest).decode())) > 100


def test_the_headers_of_a_stream_keep_proxies_from_buffering_it(url: str) -> None:
    text = curl("-i", *posting(url, "/v1/completions", prompt=SUM, stream=True, max_tokens=4))
    head, _, body = text.partition("\n\n") if "\n\n" in text.split("data:")[0] else text.partition("\r\n\r\n")
    lines = head.splitlines()
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    assert lines[0] == "HTTP/1.1 200 OK"
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"
    assert headers["transfer-encoding"] == "chunked"
    assert "server" not in headers, "which software runs here is nobody's business"
    assert headers["x-request-id"]
    events(body)


def test_one_connection_carries_many_requests(url: str) -> None:
    """Streams too: a connection that had to be closed after each stream would cost a handshake a request."""
    asks: list[str] = []
    for n in range(3):
        for stream in (False, True):
            asks += ["-o", "/dev/null", "-w", "%{http_version} %{num_connects} %{http_code}\\n"]
            asks += posting(url, "/v1/completions", prompt=SUM, stream=stream, max_tokens=3, seed=n)
            asks += ["--noproxy", "*", "--next", "-sS"]
    lines = curl(*asks[:-2]).split("\n")[:-1]
    assert lines == ["1.1 1 200"] + ["1.1 0 200"] * 5


def test_errors_are_json_with_a_status_and_leave_the_connection_open(url: str) -> None:
    bad = posting(url, "/v1/completions", prompt=SUM, temperature=9)
    good = posting(url, "/v1/completions", prompt=SUM, max_tokens=1)
    text = curl("-w", "\n%{http_code} %{num_connects}\n", *bad, "--next", "-sS", "--noproxy", "*", "-o", "/dev/null",
                "-w", "%{http_code} %{num_connects}\n", *good)  # fmt: skip
    body, first, second = text.strip().split("\n")
    assert json.loads(body)["error"]["param"] == "temperature"
    assert (first, second) == ("400 1", "200 0")


def test_without_a_key_everything_but_the_probes_is_closed(url: str) -> None:
    paths = ["/v1/models", "/metrics", "/docs", "/openapi.json", "/version", "/nothing", "/health/..%2fv1/models"]
    for path in paths:
        assert curl("-o", "/dev/null", "-w", "%{http_code}", f"{url}{path}") == "401", path
    for path in ("/health", "/ready"):
        assert curl("-o", "/dev/null", "-w", "%{http_code}", f"{url}{path}") == "200", path


def test_head_and_options_do_not_crash(url: str) -> None:
    auth = ["-H", f"Authorization: Bearer {KEY}"]
    for method, path in (("OPTIONS", "/v1/completions"), ("DELETE", "/v1/models"), ("GET", "/v1/completions")):
        code = curl("-o", "/dev/null", "-w", "%{http_code}", "-X", method, *auth, f"{url}{path}")
        assert code == "405", (method, path)
