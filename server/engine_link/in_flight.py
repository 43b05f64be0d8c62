"""The choices that the engine works on: where the events of each go, and how fast they have lately been ending."""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Protocol

from engine.events import Finished, GenerationEvent, TokensSettled
from engine.request import Request
from server.http.errors import INTERNAL_ERROR, ApiError, EngineFailure

logger = logging.getLogger("lightcone.engine")

DRAIN_RATE_WINDOW = 30.0
"""Seconds over which the drain rate is taken: what ended earlier tells nothing about the queue of now."""


class EventSink(Protocol):
    """The receiver of the events of one HTTP request's choices. Called on the event loop; must not block or wait."""

    def put(self, event: GenerationEvent) -> None:
        """Takes one event of one of the choices."""

    def fail(self, error: ApiError) -> None:
        """Ends the whole request; no event follows."""


class InFlight:
    """The choices that have been submitted and have not finished. Lives on one event loop."""

    def __init__(self) -> None:
        self._sinks: dict[str, EventSink] = {}
        self._waiting: dict[str, int] = {}  # request id -> prompt tokens, until its first event
        self._ended: deque[float] = deque(maxlen=256)  # when choices ended, on time.monotonic's clock

    def __len__(self) -> int:
        return len(self._sinks)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._sinks

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens of the choices that the engine has not begun to answer."""
        return sum(self._waiting.values())

    def drain_rate(self) -> float:
        """Choices that ended a second, over the last DRAIN_RATE_WINDOW seconds; 0 where too few ended to tell."""
        now = time.monotonic()
        lately = [moment for moment in self._ended if moment > now - DRAIN_RATE_WINDOW]
        return len(lately) / max(now - lately[0], 1e-3) if len(lately) > 1 else 0.0

    def add(self, requests: list[Request], sink: EventSink) -> None:
        """From now on the events of these requests go to the sink, until each has finished or been dropped."""
        for request in requests:
            self._sinks[request.request_id] = sink
            self._waiting[request.request_id] = len(request.prompt_token_ids)

    def drop(self, request_ids: list[str]) -> list[str]:
        """Forgets choices; their remaining events go nowhere. Returns those that were still in flight."""
        dropped = [request_id for request_id in request_ids if self._sinks.pop(request_id, None) is not None]
        for request_id in dropped:
            self._waiting.pop(request_id, None)
            self._ended.append(time.monotonic())
        return dropped

    def fail_all(self, error: ApiError) -> None:
        """Ends everything in flight with this error."""
        sinks = set(self._sinks.values())
        self._sinks.clear()
        self._waiting.clear()
        for sink in sinks:
            sink.fail(error)

    def deliver(self, events: list[GenerationEvent]) -> list[str]:
        """Hands each event to its sink. Returns the ids of choices whose sink failed: the engine must drop them."""
        broken: list[str] = []
        for event in events:
            sink = self._sinks.get(event.request_id)
            if sink is None:
                continue
            if isinstance(event, TokensSettled | Finished):
                self._waiting.pop(event.request_id, None)
            if isinstance(event, Finished):
                del self._sinks[event.request_id]
                self._ended.append(time.monotonic())
            try:
                sink.put(event)
            except Exception:  # a defect in the handling of one request ends that request alone
                logger.exception("an event of request %s could not be handled", event.request_id)
                broken += self.drop([event.request_id])
                sink.fail(EngineFailure(INTERNAL_ERROR))
        return broken
