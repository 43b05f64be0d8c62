"""A job in flight: the engine's events go in, deltas of its choices come out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from engine.events import DraftUpdated, GenerationEvent
from engine.request import Request
from server.engine_link.in_flight import EventSink
from server.formats.parts import Part
from server.generation.choice import ChoiceState, Delta, ScoredToken
from server.generation.job import Job
from server.generation.unmasked import UnmaskedToken
from server.http.errors import ApiError, EngineFailure
from server.text.tokenizer import Tokenizer


class Engine(Protocol):
    """The part of EngineLink that a generation needs."""

    def submit(self, requests: list[Request], sink: EventSink) -> None:
        """Starts requests whose events go to the sink."""

    def abort(self, request_ids: list[str]) -> None:
        """Drops requests; finished ones are ignored."""


class WholeChoice(NamedTuple):
    """A choice that has ended."""

    state: ChoiceState
    parts: list[Part]
    """All that it is made of."""
    tokens: list[ScoredToken]
    """Its tokens with their log-probabilities, where these were asked for."""
    token_ids: list[int]
    """The ids of all its tokens, an end token included, where these were asked for."""
    unmasked: list[UnmaskedToken]
    """How all its tokens were unmasked, an end token included, where that was asked for."""


class Generation:
    """Runs one job inside `async with`, which on the way out drops whatever is unfinished from the engine.

    Events are taken in the moment they arrive, so a stop string ends the work even while the reader is slow. What the
    reader has not taken yet merges, and never holds more than the answer itself.
    """

    def __init__(self, engine: Engine, job: Job, tokenizer: Tokenizer, on_tokens: Callable[[int], None]) -> None:
        """on_tokens: called with the number of tokens that have settled, as they do."""
        self.job = job
        self.choices = [ChoiceState(index, job, tokenizer) for index in range(len(job.choices))]
        self.started = time.monotonic()
        self.first_text: float | None = None
        """When the first text was settled, on the clock of time.monotonic."""
        self.first_draft: float | None = None
        """When the first draft arrived, on the same clock."""
        self._engine, self._on_tokens = engine, on_tokens
        self._by_id = {request.request_id: state for request, state in zip(job.requests, self.choices, strict=True)}
        self._unreported = set(range(len(self.choices)))
        self._stages = list(job.stages) or [len(self.choices)]
        self._submitted = self._unfinished = 0  # choices: so far; of them, of the latest stage
        self._changed: set[int] = set()
        self._error: ApiError | None = None
        self._wake = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._submit_stage()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._engine.abort(list(self._by_id))

    def put(self, event: GenerationEvent) -> None:
        """EventSink: takes one event in."""
        state = self._by_id[event.request_id]
        running, tokens = not state.done, state.stats.completion_tokens
        state.feed(event)
        if state.stats.completion_tokens > tokens:
            self._on_tokens(state.stats.completion_tokens - tokens)
        if state.error is not None:
            self.fail(EngineFailure(state.error, None, "generation_failed"))
        elif running and state.done:  # by a stop string: the engine does not know yet
            self._engine.abort([event.request_id])
        if running and state.done:
            self._unfinished -= 1
            if not self._unfinished and self._stages and self._error is None:
                self._go_on()
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

    def _submit_stage(self) -> None:
        count = self._stages.pop(0)
        self._unfinished = count
        self._submitted += count
        self._engine.submit(self.job.requests[self._submitted - count : self._submitted], self)

    def _go_on(self) -> None:
        """Submits the next stage, from within an event: the reader is told if that fails."""
        try:
            self._submit_stage()
        except ApiError as error:
            self.fail(error)

    async def next(self) -> list[Delta]:
        """Waits for news; empty once every choice has been reported to its end. Raises ApiError."""
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

    async def finish(self) -> list[WholeChoice]:
        """Waits for the end of every choice. Raises ApiError."""
        whole = [WholeChoice(state, [], [], [], []) for state in self.choices]
        while deltas := await self.next():
            for delta in deltas:
                whole[delta.index].parts.extend(delta.parts)
                whole[delta.index].tokens.extend(delta.tokens)
                whole[delta.index].token_ids.extend(delta.token_ids)
                whole[delta.index].unmasked.extend(delta.unmasked)
        return whole
