"""The interface between the server and an engine, whatever stands behind it: a process, or a script in tests."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import StrEnum

from engine.config import EngineConfig, EngineInfo
from engine.events import StepStats
from engine.messages import EngineLoading, EngineUpdate
from engine.request import Request
from server.engine_link.in_flight import EventSink, InFlight
from server.http.errors import ApiError


class EngineState(StrEnum):
    """The state of the engine, as /health shows it."""

    LOADING = "loading"
    RUNNING = "running"
    RESTARTING = "restarting"
    FAILED = "failed"
    STOPPED = "stopped"


class EngineLink(ABC):
    """One engine as the server sees it. Lives on one event loop."""

    def __init__(self) -> None:
        self.state = EngineState.LOADING
        self.info: EngineInfo | None = None
        """Facts of the loaded model; None until it has been loaded."""
        self.stats: StepStats | None = None
        """Statistics of the newest pass."""
        self.failure: str | None = None
        """One line on the newest failure of the engine."""
        self.restarts = 0
        self.in_flight = InFlight()
        self.given_up = asyncio.Event()
        """Set once the engine has failed too often to be started again."""
        self.on_step: Callable[[StepStats], None] = lambda stats: None
        """Called with the statistics of each update."""
        self.on_loading: Callable[[EngineLoading], None] = lambda progress: None
        """Called as an engine reads its weights."""
        self.on_ready: Callable[[bool], None] = lambda up: None
        """Called with True when the engine is loaded, with False when it is lost."""

    @abstractmethod
    async def start(self, config: EngineConfig) -> EngineInfo:
        """Starts the engine and waits until its model is loaded. Raises EngineChildError."""

    @abstractmethod
    async def stop(self) -> None:
        """Stops the engine at once; every request in flight is told so."""

    @abstractmethod
    def kill(self) -> None:
        """Ends the engine at once, without waiting or telling anybody."""

    @abstractmethod
    def submit(self, requests: list[Request], sink: EventSink) -> None:
        """Hands requests to the engine. Their events go to the sink until each has finished or been aborted.

        Raises Unavailable where there is no running engine.
        """

    @abstractmethod
    def abort(self, request_ids: list[str]) -> None:
        """Drops choices before the next pass; their remaining events go nowhere. Finished ids are ignored."""

    def fail_all(self, error: ApiError) -> None:
        """Ends everything in flight with this error."""
        self.in_flight.fail_all(error)

    def deliver(self, update: EngineUpdate) -> None:
        """Takes in one update of the engine: statistics, and events for the requests in flight."""
        self.stats = update.stats
        broken = self.in_flight.deliver(update.events)
        if broken:
            self.abort_in_engine(broken)
        self.on_step(update.stats)

    @abstractmethod
    def abort_in_engine(self, request_ids: list[str]) -> None:
        """Has the engine drop choices that are no longer in flight here."""
