"""Admission control: whether a request may be queued now, or is answered 429 or 503 with a time to come back."""

from __future__ import annotations

import math

from server.engine_link.link import EngineLink, EngineState
from server.http.errors import Overloaded, Unavailable

UNKNOWN_RETRY_AFTER = 5
"""Seconds to wait that are told where nothing has ended lately."""
MAX_RETRY_AFTER = 60


class Admission:
    """Bounds what may wait for the engine."""

    def __init__(self, engine: EngineLink, *, max_running: int, max_queued: int, max_queued_tokens: int) -> None:
        """max_running: choices that run at once. max_queued: choices that may wait beyond them; max_queued_tokens:
        prompt tokens that may wait."""
        self._engine = engine
        self._max_running, self._max_queued, self._max_queued_tokens = max_running, max_queued, max_queued_tokens

    def check_queue(self, choices: int = 1) -> None:
        """Raises Unavailable or Overloaded when so many choices cannot be taken now.

        It is cheap: a full server asks this before it reads a request.
        """
        if self._engine.state is not EngineState.RUNNING:
            raise Unavailable("The engine is restarting; try again shortly.", "engine_unavailable")
        over = self._waiting(choices) - self._max_queued
        if over > 0 and len(self._engine.in_flight):  # an idle server takes any valid request
            raise Overloaded("Too many requests are waiting; try again shortly.", self._retry_after(over))

    def check_job(self, choices: int, prompt_tokens: int) -> None:
        """Raises Unavailable or Overloaded when a job of so many choices and prompt tokens cannot be taken now.

        Reserves nothing: a job counts once it is submitted.
        """
        self.check_queue(choices)
        waiting = self._engine.in_flight.waiting_tokens
        if waiting and waiting + prompt_tokens > self._max_queued_tokens:
            excess = max(self._waiting(choices), 1)
            raise Overloaded("Too many prompt tokens are waiting; try again shortly.", self._retry_after(excess))

    def _waiting(self, choices: int) -> int:
        """Choices that would wait, were so many taken; negative while more could run at once."""
        return len(self._engine.in_flight) + choices - self._max_running

    def _retry_after(self, excess: int) -> int:
        """Seconds until as many places are free, at the rate at which choices lately ended."""
        rate = self._engine.in_flight.drain_rate()
        return min(max(math.ceil(excess / rate), 1), MAX_RETRY_AFTER) if rate > 0 else UNKNOWN_RETRY_AFTER
