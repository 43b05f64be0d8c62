"""`lightcone generate` as people run it: in a terminal, in a pipe, against a server or with none at all."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from server.terminal.command import main
from tests.clients.conftest import KEY, MODES, QUESTION, STORY, TALE
from tests.clients.terminal.terminals import COMMAND, environment, plain, terminal
from tests.http_helpers import ROOT, ask, wait_for
from tests.server.processes import descendants, gone

MASK = "\u2592"


class Result(NamedTuple):
    status: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process, its output not a terminal's."""
    monkeypatch.setenv("LIGHTCONE_URL", url)
    monkeypatch.setenv("LIGHTCONE_API_KEY", KEY)

    def run(*arguments: str, stdin: str = "") -> Result:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        try:
            status = main(arguments)
        except SystemExit as exc:  # argparse
            status = int(str(exc.code))
        return Result(status, *capfd.readouterr())

    return run


def await_end_of(processes: Collection[int]) -> None:
    wait_for(f"the end of {processes}", lambda: all(map(gone, processes)), 10)


def api_text(http: httpx.Client, question: str = QUESTION, **body: object) -> str:
    messages = [{"role": "user", "content": question}]
    text: str = ask(http, {"messages": messages, "temperature": 0, **body}).json()["choices"][0]["message"]["content"]
    return text


@pytest.mark.parametrize("mode", MODES)
def test_in_a_pipe_it_is_the_text_and_nothing_else(http: httpx.Client, run: Run, mode: str) -> None:
    """Watching or not: what a script reads has no colours, no drafts and no statistics in it."""
    for watch in ([], ["--watch"]):
        done = run(QUESTION, "--decoding", mode, "--temperature", "0", *watch)
        assert done == (0, api_text(http, decoding=mode) + "\n", "")


@pytest.mark.parametrize("mode", MODES)
def test_watching_shows_the_text_resolve_and_what_it_cost(http: httpx.Client, url: str, mode: str) -> None:
    text = api_text(http, TALE, decoding=mode)  # a sum is certain at once
    with terminal(url, TALE, "--decoding", mode, "--temperature", "0", "--watch", "--delay", "0.01") as running:
        output = plain(running.read())
        assert running.close() == 0
    assert " ".join(text.split()) in " ".join(output.rpartition("draft")[2].split())
    costs, origin = output.strip().split("\n")[-2:]
    assert re.fullmatch(r"\d+ tokens · \d+ passes · \d+\.\d\d tokens per pass · \d+\.\d\d s", costs), costs
    assert re.fullmatch(rf"{mode} · seed \d+", origin), origin
    assert (MASK in output) == (mode == "diffusion")
    assert ("\x1b[3;38;2;" in running.output) == (mode != "ar"), "drafts are in the colour of their confidence"
    assert running.output.count("\x1b[?25h") == running.output.count("\x1b[?25l"), "the cursor comes back"


def test_seed_and_sampling_flags_reach_the_server(http: httpx.Client, run: Run) -> None:
    flags = ["--raw", "--temperature", "1", "--seed", "7", "--max-tokens", "12", "--decoding", "diffusion",
             "--threshold", "0.6", "--block-length", "8"]  # fmt: skip
    body = {"prompt": STORY, "temperature": 1, "seed": 7, "max_tokens": 12, "decoding": "diffusion", "threshold": 0.6,
            "block_length": 8}  # fmt: skip
    expected = ask(http, body).json()["choices"][0]["text"]
    assert run(STORY, *flags).out == expected + "\n"
    assert run("-", *flags, stdin=STORY).out == expected + "\n"


def test_any_field_of_the_request_can_be_given(http: httpx.Client, run: Run) -> None:
    flags = ["--raw", "--max-tokens", "6", "--field", "stop_token_ids=[9]", "--field", "temperature=0"]
    expected = ask(http, {"prompt": STORY, "max_tokens": 6, "temperature": 0}).json()["choices"][0]["text"]
    assert run(STORY, *flags, "--field", "user=me").out == expected + "\n"


def test_a_suffix_is_shown_with_the_gap_between(url: str) -> None:
    with terminal(
        url, "Once upon a time", "--suffix", " the end of 猫 and 🦉.", "--max-tokens", "8", "--watch"
    ) as running:
        output = plain(running.read())
        assert running.close() == 0
    lines = output.strip().split("\n")
    assert lines[-2].startswith("8 tokens · ")
    assert "cut" not in lines[-1], "a gap is filled to its end, not cut off"
    shown = "".join(lines[-5:-2])
    assert "Once upon a time" in shown
    assert "the end of 猫 and 🦉." in shown


def test_a_small_terminal_shows_the_end_and_leaves_the_whole(http: httpx.Client, url: str) -> None:
    text = api_text(http, decoding="diffusion")
    flags = ["--decoding", "diffusion", "--temperature", "0", "--watch", "--delay", "0"]
    with terminal(url, QUESTION, *flags, size=(5, 16)) as running:
        output = plain(running.read())
        assert running.close() == 0
    assert " ".join(text.split()) in " ".join(output.split())
    assert max(len(line) for line in re.split(r"[\r\n]", output)) <= 16


def test_an_interrupt_keeps_what_has_settled_and_ends_the_request(url: str, http: httpx.Client) -> None:
    with terminal(url, TALE, "--decoding", "ar", "--watch", "--delay", "0.3") as running:
        running.read(until="3 tokens")
        os.killpg(running.process.pid, signal.SIGINT)
        output = running.read()
        assert running.close() == 130
    assert "Traceback" not in output
    assert "\x1b[?25h" in output, "the cursor comes back"
    none_running = 'lightcone_requests_running{model="builtin"} 0.0'
    wait_for("the request to end", lambda: none_running in http.get("/metrics").text, 5)


REFUSED = [
    (["--temperature", "9"], 1, "temperature"),
    (["--decoding", "ar", "--threshold", "0.5"], 1, "threshold"),
    (["--max-tokens", "-1"], 1, "max_tokens"),
    (["--api-key", "wrong"], 1, "API key"),
    (["--url", "http://127.0.0.1:1"], 1, "cannot reach http://127.0.0.1:1"),
    (["--url", "localhost:8000"], 1, "http://"),
    (["--url", "http://localhost:port"], 1, "URL"),
    (["--suffix", "x", "--chat"], 1, "--suffix"),
    (["--delay", "-1"], 1, "--delay"),
    (["--field", "remasking=random"], 1, "remasking"),
    (["--field", "no_such_field=1"], 1, "no_such_field"),
    (["--field", "top_p"], 2, "NAME=VALUE"),
    (["--decoding", "magic"], 2, "magic"),
    (["--max-tokens", "many"], 2, "many"),
]


@pytest.mark.parametrize(("flags", "status", "message"), REFUSED)
def test_what_goes_wrong_is_one_line(run: Run, flags: list[str], status: int, message: str) -> None:
    done = run(QUESTION, *flags)
    assert done.status == status
    assert message in done.err
    assert done.out == ""
    if status == 1:
        assert re.fullmatch(r"lightcone: error: [^\n]+\n", done.err), done.err


def test_a_reader_that_leaves_is_no_error_of_its_own(url: str) -> None:
    command = [*COMMAND, TALE, "--decoding", "ar"]
    with subprocess.Popen(
        command, env=environment(url), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 1


def test_without_a_server_it_starts_one_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """From any directory: one that happens to hold a package called `server` or `engine`, too."""
    for name in ("server", "engine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong package')")
    command = [Path(sys.executable).parent / "lightcone", "generate", QUESTION, "--temperature", "0"]
    started: set[int] = set()
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(None, PYTHONPATH=""), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        while process.poll() is None:
            with suppress(FileNotFoundError, ProcessLookupError):  # one may end while they are looked up
                started.update(descendants(process.pid))
            time.sleep(0.02)
        answer, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "112" in answer
    assert len(started) >= 2, "a server and its engine"
    await_end_of(started)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("moment", ["starting", "generating"])
def test_however_it_ends_its_server_ends_too(number: signal.Signals, moment: str) -> None:
    with terminal(None, TALE, "--decoding", "ar", "--watch", "--delay", "0.3") as running:
        running.read(until="starting" if moment == "starting" else "2 tokens")
        wait_for("its server", lambda: bool(descendants(running.process.pid)), 10)
        started = descendants(running.process.pid)
        assert moment == "starting" or len(started) == 2, "a server and its engine"
        os.killpg(running.process.pid, number)
        running.read()
        assert running.close() == (130 if number == signal.SIGINT else -signal.SIGKILL)
    await_end_of(started)


def test_two_modes_race_beside_each_other(url: str, http: httpx.Client) -> None:
    """Each under its name, with the same seed, and with what each cost."""
    with terminal(
        url, QUESTION, "--decoding", "ar", "--against", "speculative", "--watch", "--delay", "0", size=(24, 130)
    ) as running:
        output = plain(running.read())
        assert running.close() == 0
    costs, origin = output.strip().split("\n")[-2:]
    origins = re.findall(r"(ar|speculative) · seed (\d+)", origin)
    assert [mode for mode, _ in origins] == ["ar", "speculative"]
    assert len({seed for _, seed in origins}) == 1
    assert len(re.findall(r"tokens · \d+ passes", costs)) == 2, output


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--decoding", "ar"], "needs --watch"),
        (["--watch"], "needs --decoding"),
        (["--watch", "--decoding", "diffusion", "--suffix", "x"], "--suffix"),
    ],
)
def test_a_race_that_cannot_be_is_one_line(run: Run, flags: list[str], message: str) -> None:
    done = run(QUESTION, "--against", "diffusion", *flags)
    assert (done.status, done.out) == (1, "")
    assert message in done.err
    assert len(done.err.splitlines()) == 1
