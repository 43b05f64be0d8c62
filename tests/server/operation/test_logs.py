"""The log: one form for all of a server's lines, JSON for programs and text for people."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from server.operation import logs
from tests.server.processes import fake, real, wait_for


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def loggers() -> Iterator[None]:
    """What a test does to the loggers is undone."""
    names = ("lightcone", "uvicorn", "asyncio", "py.warnings")
    before = {name: dict(vars(logging.getLogger(name))) for name in names}
    yield
    logging.captureWarnings(False)
    for name, state in before.items():
        vars(logging.getLogger(name)).update(state)


def written(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, form: logs.LogFormat) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    logs.set_up("info", form)
    fields = {"status": 200, "error": None, "code": "a\nb\x1b[2J"}
    logging.getLogger("lightcone.test").warning("a %s", "line", extra={"fields": fields})
    return stream.getvalue()


@pytest.mark.parametrize(
    ("stream", "form", "is_json"),
    [
        (io.StringIO, "auto", True), (Terminal, "auto", False), (io.StringIO, "text", False), (Terminal, "json", True),
    ],
)  # fmt: skip
def test_the_form_follows_the_terminal_unless_it_is_given(
    monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO], form: logs.LogFormat, is_json: bool
) -> None:
    line = written(monkeypatch, stream(), form)
    assert line.count("\n") == 1
    assert line.startswith("{") is is_json
    if is_json:
        assert json.loads(line)["code"] == "a\nb\x1b[2J"
    else:
        assert "WARNING" in line
        assert "status=200" in line
        assert "error" not in line
        assert r"code=a\nb\x1b[2J" in line, "what a client sent must not command the terminal"


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb"), ("NO_COLOR", "")])
def test_colour_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(variable, value)
    assert ("\x1b[" in written(monkeypatch, Terminal(), "text")) is not bool(value)
    assert "\x1b[" not in written(monkeypatch, io.StringIO(), "text")


def test_every_line_of_a_real_server_is_json_the_engines_too() -> None:
    """A log collector that meets one other line may drop it, or the whole stream."""
    with real() as server:
        server.complete(max_tokens=4)
        server.process.send_signal(signal.SIGTERM)
        lines = [json.loads(line) for line in server.errors().splitlines()]
    assert {"lightcone.engine", "lightcone.server", "lightcone.request"} <= {line["logger"] for line in lines}
    assert [line for line in lines if line["message"].startswith("model loaded in")]
    [ready] = [line for line in lines if line["message"] == "ready"]
    assert ready["url"] == server.url
    assert ready["docs"] == f"{server.url}/docs"


def test_what_an_engine_writes_by_itself_is_a_line_like_all_others() -> None:
    with fake("noisy") as server:
        server.wait_until_ready()
        wait_for("the noise", lambda: bool(server.log_lines("not a log line")), 10)
        [line] = server.log_lines("not a log line")
        assert (line["level"], line["logger"]) == ("warning", "lightcone.engine")
        assert server.log_lines("on standard output")
        assert all(line.startswith("{") for line in server.log().splitlines())
        assert server.complete().status_code == 200


def test_a_terminal_gets_text_and_is_told_how_to_begin() -> None:
    """The first thing a new user sees."""
    ours, theirs = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "tests.serve_with_fake_engine",
        "echo",
        "--port",
        "0",
        "--api-key",
        "k",
    ]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    text, deadline = "", time.monotonic() + 60
    try:
        while "/docs" not in text and time.monotonic() < deadline:
            text += os.read(ours, 65536).decode()
    finally:
        process.terminate()
        process.communicate(timeout=20)
        os.close(ours)
    assert '{"time"' not in text
    assert "ready: builtin at http://127.0.0.1:" in text
    assert "curl http://127.0.0.1:" in text
    assert "Authorization: Bearer KEY" in text
