"""A model on two ranks, and what goes wrong with either: docs/OPERATIONS.md tells operators what these tests prove.

If one fails, requests wait for ever on a rank that is gone, an engine goes on with half of a model, or a rank is left
behind that holds a GPU.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.server.engine_link.test_faults import Background, in_flight
from tests.server.processes import ServerProcess, descendants, gone, real, wait_for

STALL = 4.0
FLAGS = ("--tensor-parallel-size", "2", "--engine-stall-timeout", str(STALL))


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with real(*FLAGS) as process:
        yield process


def other_rank(server: ServerProcess) -> int:
    """The process id of rank 1."""
    lines = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in descendants(server.process.pid)}
    [pid] = [pid for pid, line in lines.items() if b"engine.runner.rank" in line]
    return pid


def answer(server: ServerProcess) -> str:
    body = {"prompt": "Once upon a time", "max_tokens": 24, "ignore_eos": True, "temperature": 0}
    text: str = server.complete(**body).json()["choices"][0]["text"]
    assert len(text) > 20
    return text


ALLOWED = STALL + 2.0
"""Seconds until the server says that it is not ready. A killed rank is missed at once, unless the machine is busy."""


def unready(server: ServerProcess) -> None:
    wait_for("unreadiness", lambda: httpx.get(f"{server.url}/ready").status_code == 503, ALLOWED)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_rank_is_told_of_and_all_are_replaced(rank: int) -> None:
    """By a kill for lack of memory, or stuck in a driver. (A third failure within minutes would end the server.)"""
    with real(*FLAGS) as server:
        before = answer(server)
        for restarts, number in enumerate((signal.SIGKILL, signal.SIGSTOP), 1):
            streamed, whole = Background(server, stream=True), Background(server)
            in_flight(server, 2)
            wait_for("text in the stream", lambda told=streamed.lines: bool(told))  # type: ignore[misc]
            started = descendants(server.process.pid)
            os.kill(other_rank(server) if rank else server.engine, number)
            unready(server)
            assert streamed.end()["error"]["code"] == whole.end()["error"]["code"] == "engine_failed"
            assert (streamed.status, whole.status) == (200, 500)
            server.wait_until_ready()
            assert answer(server) == before
            assert server.metric("engine_restarts_total") == restarts
            assert all(map(gone, started)), "a rank of the old engine is still there"
            assert len(descendants(server.process.pid)) == 2
        if rank:
            assert server.log_lines("engine failed: rank 1 of 2: ended (killed by SIGKILL)")
            assert server.log_lines(f"engine failed: the engine was silent for {STALL:g} s")


def test_the_operator_sees_how_many_ranks_there_are(server: ServerProcess) -> None:
    assert server.metric("tensor_parallel_size") == 2
    [loaded] = server.log_lines("model loaded")
    assert loaded["tensor_parallel_size"] == 2
    assert answer(server)
    wait_for("the pool to be whole", lambda: server.metric("kv_cache_usage_ratio") == 0, 5)


def test_a_rank_that_hangs_while_nothing_runs_is_missed(server: ServerProcess) -> None:
    """The next request would find it out, and pay for it."""
    before = answer(server)
    os.kill(other_rank(server), signal.SIGSTOP)
    unready(server)
    server.wait_until_ready()
    assert answer(server) == before
    assert server.metric("engine_restarts_total") == 1


def test_nothing_outlives_a_killed_server_and_a_second_one_does_not_collide(server: ServerProcess) -> None:
    """A stopped rank runs no thread that could notice that it is alone."""
    with real(*FLAGS) as doomed:
        background = Background(doomed, stream=True)
        in_flight(doomed, 1)
        assert answer(server) == answer(doomed)
        started = descendants(doomed.process.pid)
        assert len(started) == 2
        os.kill(other_rank(doomed), signal.SIGSTOP)
        time.sleep(0.2)
        doomed.process.kill()
        background.join()
        wait_for("every process to leave", lambda: all(map(gone, started)), 5)


def test_an_impossible_number_of_ranks_is_refused_in_one_line() -> None:
    with real("--tensor-parallel-size", "3", ready=False) as refused:
        assert refused.process.wait(60) != 0
        assert "tensor_parallel_size 3 does not divide the model's" in refused.errors()
        assert "Traceback" not in refused.errors()


def test_an_orderly_stop_ends_every_rank(server: ServerProcess) -> None:
    """The last test of this file: it stops the server that the others share."""
    started = descendants(server.process.pid)
    assert len(started) == 2
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0
    assert all(map(gone, started))
    assert "Traceback" not in server.log()
