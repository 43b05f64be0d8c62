"""Drives an engine in process: requests that come and go between passes, with the books checked after every one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from engine.engine import Engine
from engine.events import DraftUpdated, Finished, GenerationEvent, StepStats, TokensSettled
from engine.request import DecodingParams, Request, SamplingParams

MAX_STEPS = 5000
"""Far more passes than any test needs: an engine that spins would otherwise hang the suite."""


@dataclass(frozen=True)
class Visit:
    """One request's stay: before which step it comes, and after how many more it leaves unasked."""

    request: Request
    arrival: int = 0
    abort_after: int | None = None


@dataclass
class Answer:
    """All that the engine said about one request."""

    events: list[GenerationEvent] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return [token for event in self.events if isinstance(event, TokensSettled) for token in event.token_ids]

    @property
    def drafts(self) -> list[DraftUpdated]:
        return [event for event in self.events if isinstance(event, DraftUpdated)]

    @property
    def finished(self) -> Finished:
        """The last event. Fails if there is none, or anything after it."""
        last = [event for event in self.events if isinstance(event, Finished)]
        assert len(last) == 1, f"{len(last)} Finished events"
        assert self.events[-1] is last[0], "an event after the last one"
        return last[0]

    @property
    def outcome(self) -> tuple[list[int], str, int | None, str | None]:
        """All that company, mode or block length must not change."""
        return self.tokens, self.finished.reason, self.finished.stop_token_id, self.finished.error


def ask(request_id: str, prompt: list[int], mode: str = "ar", **fields: Any) -> Request:
    """A request; fields of SamplingParams, DecodingParams and Request may be mixed. Greedy, 16 tokens, blocks of 8."""
    values: dict[str, Any] = {"temperature": 0.0, "max_tokens": 16, "block_length": 8, "mode": mode} | fields

    def take(struct: type[msgspec.Struct]) -> dict[str, Any]:
        return {name: values.pop(name) for name in struct.__struct_fields__ if name in values}

    sampling, decoding_params = SamplingParams(**take(SamplingParams)), DecodingParams(**take(DecodingParams))
    return Request(
        request_id=request_id, prompt_token_ids=prompt, sampling=sampling, decoding=decoding_params, **values
    )


def step(engine: Engine, answers: dict[str, Answer]) -> StepStats:
    """One pass; its events go to the answers and the books are checked."""
    events, stats = engine.step()
    collect(events, answers)
    engine.scheduler.check_integrity()
    return stats


def collect(events: Iterable[GenerationEvent], answers: dict[str, Answer]) -> None:
    for event in events:
        answers.setdefault(event.request_id, Answer()).events.append(event)


def drive(engine: Engine, visits: Iterable[Visit | Request]) -> dict[str, Answer]:
    """Runs visits until the engine is idle, checks that its pool is whole again, and returns what each one got."""
    answers: dict[str, Answer] = {}
    every = [visit if isinstance(visit, Visit) else Visit(visit) for visit in visits]
    steps = 0
    while engine.has_work or any(visit.arrival >= steps for visit in every):
        for visit in every:
            if visit.arrival == steps:
                engine.add(visit.request)
            if visit.abort_after is not None and visit.arrival + visit.abort_after == steps:
                collect(engine.abort(visit.request.request_id), answers)
        step(engine, answers)
        steps += 1
        assert steps < MAX_STEPS, "the engine does not come to an end"
    assert_idle(engine)
    return answers


def assert_idle(engine: Engine) -> None:
    """Nothing runs, nothing waits, and every page can be had."""
    scheduler = engine.scheduler
    assert (scheduler.num_running, scheduler.num_waiting, list(scheduler.running)) == (0, 0, [])
    assert scheduler.allocator.num_free == engine.info.num_pages, "pages are lost"
    scheduler.check_integrity()
