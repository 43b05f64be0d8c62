"""The table of choices in flight. If it fails, an event reaches the wrong client, or none, or a queue never empties."""

from __future__ import annotations

import pytest

from engine.events import Finished, GenerationEvent, GenerationStats, TokensSettled
from engine.request import Request
from server.engine_link.in_flight import InFlight
from server.http.errors import ApiError, EngineFailure


class Sink:
    """Keeps everything; breaks at the first event where it is told to."""

    def __init__(self, *, breaks: bool = False) -> None:
        self.events: list[GenerationEvent] = []
        self.error: ApiError | None = None
        self._breaks = breaks

    def put(self, event: GenerationEvent) -> None:
        if self._breaks:
            raise RuntimeError("a defect")
        self.events.append(event)

    def fail(self, error: ApiError) -> None:
        self.error = error


def request(request_id: str) -> Request:
    return Request(request_id=request_id, prompt_token_ids=[9, 10], max_tokens=5)


def tokens(request_id: str) -> TokensSettled:
    return TokensSettled(request_id=request_id, token_ids=[7], stats=GenerationStats())


def finished(request_id: str) -> Finished:
    return Finished(request_id=request_id, reason="stop", stats=GenerationStats())


def test_a_prompt_waits_until_its_first_event() -> None:
    table, sink = InFlight(), Sink()
    table.add([request("a"), request("b")], sink)
    assert (len(table), table.waiting_tokens) == (2, 4)
    table.deliver([tokens("a")])
    assert (len(table), table.waiting_tokens) == (2, 2)
    table.deliver([finished("a"), finished("b"), tokens("b")])
    assert (len(table), table.waiting_tokens) == (0, 0)
    assert sink.events == [tokens("a"), finished("a"), finished("b")]


def test_what_was_dropped_hears_no_more() -> None:
    table, sink = InFlight(), Sink()
    table.add([request("a")], sink)
    assert table.drop(["a", "never heard of"]) == ["a"]
    assert "a" not in table
    table.deliver([tokens("a")])
    assert sink.events == []


@pytest.mark.parametrize("last", [False, True])
def test_a_defect_in_one_request_ends_that_request_alone(last: bool) -> None:
    """And the engine is told to drop it, unless it has just finished."""
    table, broken, sound = InFlight(), Sink(breaks=True), Sink()
    table.add([request("broken")], broken)
    table.add([request("sound")], sound)
    event = finished("broken") if last else tokens("broken")
    assert table.deliver([event, tokens("sound")]) == ([] if last else ["broken"])
    assert isinstance(broken.error, EngineFailure)
    assert sound.events == [tokens("sound")]
    assert len(table) == 1


def test_a_lost_engine_is_told_to_each_request_once() -> None:
    table, sink = InFlight(), Sink()
    table.add([request("a"), request("b")], sink)
    error = EngineFailure("gone")
    table.fail_all(error)
    assert sink.error is error
    assert (len(table), table.waiting_tokens) == (0, 0)
