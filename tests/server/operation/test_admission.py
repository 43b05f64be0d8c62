"""Admission control. If it fails, a full server either turns work away that it could do, or lets its queue grow."""

from __future__ import annotations

import pytest

from engine.events import Finished, GenerationStats
from engine.request import Request
from server.engine_link.link import EngineState
from server.http.errors import ApiError, Overloaded, Unavailable
from server.operation.admission import MAX_RETRY_AFTER, UNKNOWN_RETRY_AFTER, Admission
from tests.fakes import FakeEngine

pytestmark = pytest.mark.anyio


class Silent:
    """A sink that ignores everything."""

    def put(self, event: object) -> None:
        pass

    def fail(self, error: ApiError) -> None:
        pass


def engine(running: int = 0, prompt: int = 10) -> FakeEngine:
    """A running engine with so many choices in flight, none of which has begun to answer."""
    made = FakeEngine()
    made.state = EngineState.RUNNING
    for number in range(running):
        request = Request(request_id=str(number), prompt_token_ids=[9] * prompt, max_tokens=1)
        made.in_flight.add([request], Silent())
    return made


def admission(of: FakeEngine, *, max_running: int = 2, max_queued: int = 1, max_tokens: int = 100) -> Admission:
    return Admission(of, max_running=max_running, max_queued=max_queued, max_queued_tokens=max_tokens)


@pytest.mark.parametrize(("in_flight", "choices", "taken"), [(0, 3, True), (2, 1, True), (3, 1, False), (2, 2, False)])
async def test_as_many_wait_as_the_limit_says(in_flight: int, choices: int, taken: bool) -> None:
    guard = admission(engine(in_flight))
    if taken:
        guard.check_job(choices, 10)
        return
    with pytest.raises(Overloaded) as refused:
        guard.check_queue(choices)
    assert refused.value.headers["Retry-After"] == str(UNKNOWN_RETRY_AFTER)


async def test_an_idle_server_takes_any_request() -> None:
    """A request with more choices than may wait could otherwise never be served, however empty the server."""
    admission(engine(), max_queued=0).check_job(100, 10**9)


async def test_waiting_prompt_tokens_are_bounded_too() -> None:
    """A few enormous prompts would hold a queue that its length alone calls short."""
    guard = admission(engine(2, prompt=40), max_queued=100)
    guard.check_job(1, 20)
    with pytest.raises(Overloaded, match="prompt tokens"):
        guard.check_job(1, 21)


@pytest.mark.parametrize("state", [state for state in EngineState if state is not EngineState.RUNNING])
async def test_without_an_engine_nothing_is_taken(state: EngineState) -> None:
    absent = engine()
    absent.state = state
    with pytest.raises(Unavailable):
        admission(absent).check_queue()


async def test_the_time_to_come_back_follows_the_rate_at_which_answers_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fixed time makes clients come back too early, all at once, or far too late."""
    busy = engine(8)
    for number in range(4):
        event = Finished(request_id=str(number), reason="stop", stats=GenerationStats())
        busy.in_flight.deliver([event])
    assert busy.in_flight.drain_rate() > 0
    for rate, seconds in ((0.5, 4), (0.01, MAX_RETRY_AFTER), (100.0, 1)):  # 2 of the 4 that are left must end
        monkeypatch.setattr(busy.in_flight, "drain_rate", lambda rate=rate: rate)
        with pytest.raises(Overloaded) as refused:
            admission(busy).check_queue()
        assert int(refused.value.headers["Retry-After"]) == seconds
