"""A job in flight: the engine's events in, deltas of text out, and the clock beside it."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Protocol, Self

from engine.events import DraftUpdated, GenerationEvent
from engine.request import Request
from server.engine_link.client import EventSink
from server.generation.answer import ChoiceState, Delta, ScoredToken
from server.generation.job import Job
from server.http.errors import ApiError, EngineFailure
from server.text.tokenizer import Tokenizer


class Engine(Protocol):
    """What a generation needs of the engine's client."""

    def submit(self, requests: list[Request], sink: EventSink) -> None:
        """Starts requests whose events go to the sink."""

    def abort(self, request_ids: list[str]) -> None:
        """Drops requests; finished ones are ignored."""


class Generation:
    """Runs one job. `async with` it: on the way out, whatever is unfinished is dropped from the engine.

    Events are taken in the moment they arrive, so a stop string ends the work even while the reader is slow; what
    the reader has not taken yet merges, and never holds more than the answer itself.
    """

    def __init__(self, engine: Engine, job: Job, tokenizer: Tokenizer) -> None:
        self.job = job
        self.choices = [
            ChoiceState(
                index, tokenizer, job.stops, job.end_token_ids, plan.echo.offsets, plan.request.prompt_token_ids[0]
            )
            for index, plan in enumerate(job.choices)
        ]
        self.started = time.monotonic()
        self.first_text: float | None = None
        """When the first text was settled."""
        self.first_draft: float | None = None
        self._engine = engine
        self._by_id = {plan.request.request_id: state for plan, state in zip(job.choices, self.choices, strict=True)}
        self._unreported = set(range(len(self.choices)))
        self._changed: set[int] = set()
        self._error: ApiError | None = None
        self._wake = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._engine.submit(self.job.requests, self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._engine.abort(list(self._by_id))

    def put(self, event: GenerationEvent) -> None:
        """EventSink: takes one event in."""
        state = self._by_id[event.request_id]
        running = not state.done
        state.feed(event)
        if state.error is not None:
            self.fail(EngineFailure(state.error, None, "generation_failed"))
        elif running and state.done:  # by a stop string, as far as the engine is concerned
            self._engine.abort([event.request_id])
        if self.first_text is None and state.text:
            self.first_text = time.monotonic()
        if self.first_draft is None and isinstance(event, DraftUpdated):
            self.first_draft = time.monotonic()
        self._changed.add(state.index)
        self._wake.set()

    def fail(self, error: ApiError) -> None:
        """EventSink: ends the whole job. The reader gets the error next, before anything still unread."""
        self._error = self._error or error
        self._wake.set()

    @property
    def reported(self) -> bool:
        """Every choice has been reported to its end."""
        return not self._unreported

    async def next(self) -> list[Delta]:
        """Waits for what is new; empty once every choice has been reported to its end. Raises ApiError."""
        while self._unreported:
            await self._wake.wait()
            self._wake.clear()
            if self._error is not None:
                raise self._error
            changed, self._changed = self._changed & self._unreported, set()
            taken = (self.choices[index].take() for index in sorted(changed))
            deltas = [delta for delta in taken if delta is not None]
            self._unreported -= {delta.index for delta in deltas if delta.finish_reason is not None}
            if deltas:
                return deltas
        return []

    async def finish(self) -> list[list[ScoredToken]]:
        """Waits for the end of every choice; returns the scored tokens of each. Raises ApiError."""
        tokens: list[list[ScoredToken]] = [[] for _ in self.choices]
        while deltas := await self.next():
            for delta in deltas:
                tokens[delta.index] += delta.tokens
        return tokens
