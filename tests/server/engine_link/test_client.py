"""The bridge to the engine process: start, answers, aborts, crashes, stalls, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from engine.config import EngineConfig
from engine.events import Finished, GenerationEvent, GenerationStats, TokensSettled
from engine.request import Request
from server.engine_link.child import EngineChildError
from server.engine_link.client import EngineClient
from server.engine_link.in_flight import InFlight
from server.engine_link.link import EngineState
from server.http.errors import ApiError, EngineFailure, Unavailable
from tests.fakes import INFO, TEXT, builtin_tokenizer
from tests.server.conftest import until

pytestmark = pytest.mark.anyio

FAKE = [sys.executable, "-m", "tests.fake_engine_process"]


class Collector:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.events: list[GenerationEvent] = []
        self.error: ApiError | None = None
        self.done = asyncio.Event()
        self.first = asyncio.Event()

    def put(self, event: GenerationEvent) -> None:
        self.events.append(event)
        self.first.set()
        if isinstance(event, Finished):
            self.done.set()

    def fail(self, error: ApiError) -> None:
        self.error = error
        self.done.set()

    async def end(self) -> None:
        await asyncio.wait_for(self.done.wait(), 10)

    @property
    def text(self) -> str:
        ids = [token for event in self.events if isinstance(event, TokensSettled) for token in event.token_ids]
        return builtin_tokenizer().decode(ids)


@asynccontextmanager
async def running(mode: str, stall_timeout: float = 5.0) -> AsyncIterator[EngineClient]:
    client = EngineClient(argv=[*FAKE, mode], stall_timeout=stall_timeout, backoff=0.01)
    try:
        assert await client.start(EngineConfig()) == INFO
        yield client
    finally:
        await client.stop()


def request(request_id: str = "r", salt: str = "") -> Request:
    return Request(request_id=request_id, prompt_token_ids=[9, 10], max_tokens=100, cache_salt=salt)


async def until_running(client: EngineClient, restarts: int) -> None:
    await until(lambda: client.restarts >= restarts and client.state is EngineState.RUNNING)


def process_id(client: EngineClient) -> int:
    assert client._child is not None
    assert client._child._process is not None
    return client._child._process.pid


async def test_events_of_many_requests_reach_their_own_readers() -> None:
    async with running("echo") as client:
        sinks = [Collector() for _ in range(5)]
        for index, sink in enumerate(sinks):
            client.submit([request(f"r{index}")], sink)
        assert len(client.in_flight) == 5
        await asyncio.gather(*(sink.end() for sink in sinks))
        assert [sink.text for sink in sinks] == [TEXT] * 5
        assert len(client.in_flight) == client.in_flight.waiting_tokens == 0
        assert client.stats is not None


async def test_an_abort_reaches_the_engine_and_silences_the_request() -> None:
    """A client that goes away must cost nothing more."""
    async with running("slow") as client:
        sink, asking = Collector(), Collector()
        client.submit([request("gone")], sink)
        await asyncio.wait_for(sink.first.wait(), 10)
        client.abort(["gone", "never heard of"])
        assert len(client.in_flight) == 0
        client.submit([request("asking", "what was aborted?")], asking)
        await asking.end()
        assert asking.text == "gone"
        assert len(sink.events) == 1


async def test_the_drain_rate_forgets_quiet_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the first clients of a busy morning would be told to come back in a minute."""
    in_flight, now = InFlight(), 0.0
    monkeypatch.setattr("server.engine_link.in_flight.time.monotonic", lambda: now)

    def end_one_at(moment: float) -> None:
        nonlocal now
        now = moment
        in_flight.add([request()], Collector())
        in_flight.deliver([Finished(request_id="r", reason="stop", stats=GenerationStats())])

    for moment in (1.0, 2.0, 3.0):
        end_one_at(moment)
    now = 1000.0
    assert in_flight.drain_rate() == 0.0
    for moment in (998.0, 999.0):
        end_one_at(moment)
    now = 1000.0
    assert in_flight.drain_rate() == 1.0


@pytest.mark.parametrize(
    ("mode", "why"), [("exit", "exit status 3"), ("fail", "the weights are damaged"), ("hang", "did not load within")]
)
async def test_a_failed_start_is_one_clear_error(mode: str, why: str) -> None:
    client = EngineClient(argv=[*FAKE, mode], start_timeout=1.0 if mode == "hang" else 20.0)
    with pytest.raises(EngineChildError, match=why):
        await client.start(EngineConfig())
    await client.stop()


@pytest.mark.parametrize("mode", ["crash", "garbage"])
async def test_a_crash_fails_what_is_in_flight_at_once_and_the_engine_comes_back(mode: str) -> None:
    """A request must never wait for an engine that is gone."""
    async with running(mode) as client:
        sink = Collector()
        client.submit([request()], sink)
        await sink.end()
        assert isinstance(sink.error, EngineFailure)
        with pytest.raises(Unavailable):
            client.submit([request()], Collector())
        await until_running(client, 1)


async def test_a_killed_engine_is_replaced() -> None:
    async with running("slow") as client:
        sink = Collector()
        client.submit([request()], sink)
        await asyncio.wait_for(sink.first.wait(), 10)
        started = asyncio.get_running_loop().time()
        os.kill(process_id(client), signal.SIGKILL)
        await sink.end()
        assert asyncio.get_running_loop().time() - started < 1.0
        assert client.failure is not None
        assert "SIGKILL" in client.failure
        await until_running(client, 1)


async def test_a_silent_engine_is_replaced() -> None:
    """A stuck engine looks alive from outside; only its silence gives it away."""
    async with running("stall", stall_timeout=0.5) as client:
        sink = Collector()
        client.submit([request()], sink)
        await sink.end()
        assert client.failure == "the engine was silent for 0.5 s"


async def test_three_failures_and_the_engine_is_given_up() -> None:
    async with running("crash") as client:
        for restart in range(3):
            await until_running(client, restart)
            sink = Collector()
            client.submit([request()], sink)
            await sink.end()
        await asyncio.wait_for(client.given_up.wait(), 15)
        assert client.state is EngineState.FAILED


async def test_stopping_leaves_nothing_behind() -> None:
    async with running("echo") as client:
        assert client._child is not None
        assert client._child._directory is not None
        directory, pid = client._child._directory.path, process_id(client)
        assert directory.stat().st_mode & 0o777 == 0o700
    assert not directory.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_an_engine_does_not_outlive_a_killed_server(tmp_path: Path) -> None:
    """An orphan would hold the GPU's memory until somebody finds it."""
    code = (
        "import asyncio, sys\n"
        "from engine.config import EngineConfig\n"
        "from server.engine_link.client import EngineClient\n"
        "async def main():\n"
        f"    client = EngineClient(argv={[*FAKE, 'echo']!r})\n"
        "    await client.start(EngineConfig())\n"
        "    print(client._child._process.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, env=environment
    )
    assert parent.stdout is not None
    engine = int(await asyncio.wait_for(parent.stdout.readline(), 20))
    parent.kill()
    await parent.wait()
    await until(lambda: not _alive(engine))


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
