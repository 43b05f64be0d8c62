"""The engine process as the API process meets it: a subprocess, a pipe to its stdin and a socket.

If one of these fails, a server does not start or stop cleanly, hangs for ever on a dead engine, or leaves engines
behind that hold a GPU.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from engine.config import EngineConfig
from engine.events import Finished, StepStats, TokensSettled
from engine.messages import (
    AbortRequests,
    AddRequests,
    EngineFailed,
    EngineLoading,
    EngineReady,
    EngineUpdate,
    FromEngine,
    Shutdown,
    ToEngine,
)
from tests.conftest import MakeEngine
from tests.engine.driving import Answer, ask, collect, drive

PATIENCE = 60.0
"""Seconds to wait for what should take two: the suite may share its cores."""


class Child:
    """One engine process, with the parent's ends of its pipe and socket."""

    def __init__(self, context: zmq.Context[Any], directory: Path, **fields: Any) -> None:
        # A socket's path is limited to about 100 bytes, so it cannot lie under pytest's own directories.
        self.directory = tempfile.TemporaryDirectory(prefix="lc-")
        endpoint = f"ipc://{self.directory.name}/s"
        self.socket: zmq.Socket[bytes] = context.socket(zmq.PAIR)
        self.socket.linger = 0
        self.socket.bind(endpoint)
        self.decoder = msgspec.msgpack.Decoder(FromEngine)
        self.loading: list[EngineLoading] = []
        self.errors = (Path(self.directory.name) / "stderr").open("w+b")
        argv = [sys.executable, "-m", "engine.process", endpoint]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=self.errors)
        settings: dict[str, Any] = {
            "model": str(directory), "dtype": "float64", "device": "cpu", "threads": 1, "calibration_seconds": 0,
            "kv_cache_tokens": 2048, "max_running": 8,
        }  # fmt: skip
        assert self.process.stdin is not None
        self.stdin = self.process.stdin
        self.stdin.write(msgspec.json.encode(EngineConfig(**(settings | fields))) + b"\n")
        self.stdin.flush()

    def send(self, message: ToEngine) -> None:
        self.socket.send(msgspec.msgpack.encode(message))

    def receive(self) -> FromEngine:
        assert self.socket.poll(int(PATIENCE * 1000)), f"the engine is silent: {self.stderr()}"
        message: FromEngine = self.decoder.decode(self.socket.recv())
        if isinstance(message, EngineLoading):
            self.loading.append(message)
            return self.receive()
        return message

    def update(self) -> EngineUpdate:
        message = self.receive()
        assert isinstance(message, EngineUpdate), message
        return message

    def until_finished(self, *request_ids: str) -> tuple[dict[str, Answer], StepStats]:
        """Reads updates until these requests are done; also the last update's figures."""
        answers: dict[str, Answer] = {}
        while True:
            update = self.update()
            collect(update.events, answers)
            done = {name for name, answer in answers.items() if isinstance(answer.events[-1], Finished)}
            if done >= set(request_ids):
                return answers, update.stats

    def stderr(self) -> str:
        self.errors.seek(0)
        return self.errors.read().decode()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.stdin.close()
        self.errors.close()
        self.socket.close()
        self.directory.cleanup()


@pytest.fixture(scope="module")
def context() -> Iterator[zmq.Context[Any]]:
    with zmq.Context() as context:
        yield context


@pytest.fixture(scope="module")
def child(context: zmq.Context[Any], tiny_checkpoint: Path) -> Iterator[Child]:
    """One running engine for all tests that leave it running."""
    child = Child(context, tiny_checkpoint)
    ready = child.receive()
    assert isinstance(ready, EngineReady), ready
    assert (ready.info.vocab_size, ready.info.max_model_len, ready.info.num_pages) == (96, 512, 128)
    assert ready.info.decodings == ("ar", "diffusion", "speculative", "auto")
    yield child
    child.close()


@pytest.fixture
def start(context: zmq.Context[Any], tiny_checkpoint: Path) -> Iterator[Any]:
    """Starts engines of a test's own."""
    children: list[Child] = []

    def make(directory: Path = tiny_checkpoint, **fields: Any) -> Child:
        children.append(Child(context, directory, **fields))
        return children[-1]

    yield make
    for child in children:
        child.close()


def test_requests_are_answered_as_they_are_in_process(child: Child, tiny_engine: MakeEngine) -> None:
    """The wire would lose or change tokens, parameters or the order of events."""
    requests = [
        ask(mode, [20, 30, 40, 50], mode, temperature=0.7, seed=2**52 + 1) for mode in ("ar", "diffusion", "auto")
    ]
    child.send(AddRequests(requests[:2]))
    child.send(AddRequests(requests[2:]))
    answers, stats = child.until_finished("ar", "diffusion", "auto")
    for request in requests:
        alone = drive(tiny_engine(), [request])[request.request_id]
        assert answers[request.request_id].outcome == alone.outcome
    assert (stats.running, stats.waiting, stats.free_pages) == (0, 0, stats.num_pages)


def test_tokens_are_sent_pass_by_pass(child: Child) -> None:
    """Nothing would be streamed: the answer would come as one lump at its end."""
    child.send(AddRequests([ask("r", [7, 8, 9], max_tokens=12)]))
    events = child.until_finished("r")[0]["r"].events
    assert [len(event.token_ids) for event in events if isinstance(event, TokensSettled)] == [1] * 12


def test_an_abort_ends_a_request_and_frees_its_pages(child: Child) -> None:
    """Clients that hang up would keep the engine busy until it has no pages left."""
    names = ["gone0", "gone1", "gone2", "gone3"]
    slow = {"block_length": 64, "threshold": None, "max_tokens": 500}  # a token a pass of 64 positions each
    child.send(AddRequests([ask(name, [7, 8, 9], "diffusion", **slow) for name in names]))
    while not child.update().events:
        pass
    child.send(AbortRequests([*names, "never was"]))
    answers, stats = child.until_finished(*names)
    for name in names:
        assert answers[name].finished.reason == "abort"
        assert 0 < answers[name].finished.stats.completion_tokens < 500
    assert (stats.running, stats.free_pages) == (0, stats.num_pages)


def test_an_invalid_request_fails_and_the_engine_lives(child: Child) -> None:
    """One client could stop the server with one bad request."""
    child.send(AddRequests([ask("bad", [96]), ask("good", [7, 8, 9], max_tokens=3), ask("long", [7], max_tokens=512)]))
    answers, _ = child.until_finished("bad", "good", "long")
    assert answers["good"].finished.reason == "length"
    for name, part in (("bad", "outside the vocabulary"), ("long", "maximum context length")):
        finished = answers[name].finished
        assert (finished.reason, answers[name].tokens) == ("error", [])
        assert finished.error is not None
        assert part in finished.error
        assert "\n" not in finished.error


def test_an_idle_engine_says_so_about_once_a_second(child: Child) -> None:
    """A stuck engine could not be told from an idle one."""
    while child.socket.poll(0):
        child.update()
    child.update()
    started = time.monotonic()
    for _ in range(2):
        update = child.update()
        assert update.events == []
        assert update.stats.tokens == 0
    assert 1.5 < time.monotonic() - started < 10


def test_ctrl_c_in_the_terminal_is_not_the_engines_business(child: Child) -> None:
    """The engine would be gone before the server has drained its streams."""
    child.process.send_signal(signal.SIGINT)
    child.send(AddRequests([ask("r", [7, 8, 9], max_tokens=3)]))
    assert child.until_finished("r")[0]["r"].finished.reason == "length"
    assert child.process.poll() is None


def test_shutdown_ends_it_in_the_middle_of_a_request_with_exit_code_0(start: Any) -> None:
    """Every orderly stop would look like a crash to whoever supervises the server."""
    child = start()
    assert isinstance(child.receive(), EngineReady)
    child.send(AddRequests([ask("r", [7, 8, 9], max_tokens=500)]))
    child.send(Shutdown())
    assert child.process.wait(PATIENCE) == 0, child.stderr()
    assert "Traceback" not in child.stderr()
    assert "Fatal" not in child.stderr()


def test_it_leaves_at_once_when_its_parent_is_gone(start: Any) -> None:
    """A killed server would leave an engine behind that holds the GPU, in the middle of its work."""
    child = start()
    assert isinstance(child.receive(), EngineReady)
    child.send(AddRequests([ask("r", [7, 8, 9], max_tokens=500)]))
    child.update()
    started = time.monotonic()
    child.stdin.close()
    assert child.process.wait(PATIENCE) == 0
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("fields", "part"),
    [({"directory": Path("/nowhere/at/all")}, "/nowhere/at/all"), ({"max_model_len": 4096}, "max_model_len")],
)
def test_what_cannot_start_says_why_in_one_line(start: Any, fields: dict[str, Any], part: str) -> None:
    """An operator would see a traceback, or an engine that never becomes ready, instead of the mistake."""
    child = start(**fields)
    message = child.receive()
    assert isinstance(message, EngineFailed)
    assert part in message.message
    assert "\n" not in message.message
    assert child.process.wait(PATIENCE) == 1, child.stderr()
    assert "Traceback" not in child.stderr()
