"""A pause is not silence: processes that are stopped and go on again, as in a frozen container or under a debugger."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

import pytest

from server.engine_link.patience import wait_running
from tests.server.processes import ServerProcess, fake, wait_for

STALL = 1.5
PAUSE = 3.0


def pause(*pids: int) -> None:
    """Stops processes for longer than the stall timeout, the last one being the first to go on."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(PAUSE)
    for pid in reversed(pids):
        os.kill(pid, signal.SIGCONT)


def check_unharmed(server: ServerProcess, engine: int) -> None:
    deadline = time.monotonic() + 2 * STALL
    while time.monotonic() < deadline:
        assert server.metric("engine_restarts_total") == 0
        assert server.http.get(f"{server.url}/ready").status_code == 200
        time.sleep(0.1)
    assert server.engine == engine
    assert server.complete().status_code == 200


@pytest.mark.parametrize("both", [False, True])
def test_a_pause_of_the_server_does_not_cost_the_engine(both: bool) -> None:
    """A laptop that slept would otherwise find every model being loaded anew."""
    with fake("echo", "--engine-stall-timeout", str(STALL)) as server:
        engine, api = server.engine, server.process.pid
        for _ in range(2):
            pause(*((engine, api) if both else (api,)))
        check_unharmed(server, engine)


def test_an_engine_that_alone_stands_still_is_replaced() -> None:
    with fake("echo", "--engine-stall-timeout", str(STALL)) as server:
        engine = server.engine
        os.kill(engine, signal.SIGSTOP)
        wait_for("another engine", lambda: server.metric("engine_restarts_total") == 1, STALL + 8)
        server.wait_until_ready()
        assert server.engine != engine


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_time_in_which_this_process_did_not_run_does_not_count() -> None:
    """Blocking the loop is to it what being stopped is to a process."""

    async def late() -> str:
        await asyncio.sleep(1.2)
        return "here"

    waiting = asyncio.create_task(wait_running(late(), 0.8))
    await asyncio.sleep(0.1)
    time.sleep(1.5)  # noqa: ASYNC251
    assert await waiting == "here"


@pytest.mark.anyio
async def test_silence_ends_in_time_and_what_was_awaited_is_cancelled() -> None:
    cancelled = asyncio.Event()

    async def never() -> Any:
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    started = time.monotonic()
    with pytest.raises(TimeoutError):
        await wait_running(never(), 0.6)
    assert 0.5 < time.monotonic() - started < 2
    assert cancelled.is_set()
