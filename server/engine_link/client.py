"""The only bridge to the engine: submits requests, delivers events, and keeps an engine process alive."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

from engine.config import EngineConfig, EngineInfo
from engine.events import Finished, GenerationEvent, StepStats, TokensSettled
from engine.messages import AbortRequests, AddRequests, EngineFailed, EngineUpdate
from engine.request import Request
from server.engine_link.child import EngineProcess, EngineProcessError
from server.http.errors import ApiError, EngineFailure, Unavailable

logger = logging.getLogger("lightcone.engine")

MAX_FAILURES = 3
FAILURE_WINDOW = 300.0
"""Seconds: so many failures within this time and the server gives up."""
BACKOFF = 0.5
"""Seconds before the first restart; doubled for each further one within the window."""
DRAIN_RATE_WINDOW = 30.0
"""Seconds: what ended before tells nothing about the queue of now."""


class EngineState(StrEnum):
    """What the engine is up to, as /health shows it."""

    LOADING = "loading"
    RUNNING = "running"
    RESTARTING = "restarting"
    FAILED = "failed"
    STOPPED = "stopped"


class EventSink(Protocol):
    """Where the events of one HTTP request's choices go. Called on the event loop; must not block or wait."""

    def put(self, event: GenerationEvent) -> None:
        """One event of one of the choices."""

    def fail(self, error: ApiError) -> None:
        """The whole request is over; nothing follows."""


class EngineClient:
    """One engine process behind a queue of requests; restarts it when it dies or falls silent.

    `argv` is the command of the engine process; tests put a fake one there.
    """

    def __init__(
        self,
        *,
        argv: list[str] | None = None,
        stall_timeout: float = 120.0,
        start_timeout: float = 1800.0,
        backoff: float = BACKOFF,
    ) -> None:
        self.state = EngineState.LOADING
        self.info: EngineInfo | None = None
        self.stats: StepStats | None = None
        """The newest pass's statistics."""
        self.failure: str | None = None
        """Why the engine was given up, once it is."""
        self.restarts = 0
        self.on_step: Callable[[StepStats], None] = lambda stats: None
        """Called with each update's statistics."""
        self.on_ready: Callable[[bool], None] = lambda up: None
        """Called when the engine is loaded, and when it is lost."""
        self.given_up = asyncio.Event()
        self._argv, self._stall_timeout, self._start_timeout = argv, stall_timeout, start_timeout
        self._backoff = backoff
        self._config: EngineConfig | None = None
        self._process: EngineProcess | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._sinks: dict[str, EventSink] = {}
        self._waiting: dict[str, int] = {}  # request id -> prompt tokens, until its first event
        self._failures: deque[float] = deque()
        self._finished: deque[float] = deque(maxlen=256)  # when choices ended, for the drain rate

    # -- life ---------------------------------------------------------------------------------------------------

    async def start(self, config: EngineConfig) -> EngineInfo:
        """Starts the engine and waits until its model is loaded. Raises EngineProcessError: a start is not retried."""
        self._config = config
        process, info = await self._launch()
        self._supervisor = asyncio.create_task(self._supervise(process))
        self.info, self.state = info, EngineState.RUNNING
        self.on_ready(True)
        return info

    async def stop(self) -> None:
        """Stops the engine at once; what is in flight is told so."""
        self.state = EngineState.STOPPED
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        self.fail_all(Unavailable("The server is shutting down.", "shutting_down", close=True))
        if self._process is not None:
            await self._process.close()
            self._process = None

    def kill(self) -> None:
        """The last resort of an exit at once: no waiting, no goodbye."""
        if self._process is not None:
            self._process.kill()

    # -- requests -----------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Choices submitted and not yet finished."""
        return len(self._sinks)

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens of the choices the engine has not begun to answer."""
        return sum(self._waiting.values())

    def drain_rate(self) -> float:
        """Choices that ended per second, lately."""
        now = time.monotonic()
        lately = [moment for moment in self._finished if moment > now - DRAIN_RATE_WINDOW]
        return len(lately) / max(now - lately[0], 1e-3) if len(lately) > 1 else 0.0

    def submit(self, requests: list[Request], sink: EventSink) -> None:
        """Hands requests to the engine. Their events go to the sink until each has finished or been aborted."""
        if self.state is not EngineState.RUNNING or self._process is None:
            raise Unavailable("The engine is not available right now; try again shortly.", "engine_unavailable")
        for request in requests:
            self._sinks[request.request_id] = sink
            self._waiting[request.request_id] = len(request.prompt_token_ids)
        self._process.send(AddRequests(requests))

    def abort(self, request_ids: list[str]) -> None:
        """Drops choices before the next pass; their remaining events go nowhere. Finished ids are ignored."""
        live = [request_id for request_id in request_ids if self._sinks.pop(request_id, None) is not None]
        for request_id in live:
            self._waiting.pop(request_id, None)
            self._finished.append(time.monotonic())
        if live and self._process is not None and self.state is EngineState.RUNNING:
            self._process.send(AbortRequests(live))

    def fail_all(self, error: ApiError) -> None:
        """Ends everything in flight with this error."""
        sinks = set(self._sinks.values())
        self._sinks.clear()
        self._waiting.clear()
        for sink in sinks:
            sink.fail(error)

    # -- inside -------------------------------------------------------------------------------------------------

    async def _launch(self) -> tuple[EngineProcess, EngineInfo]:
        if self._config is None:
            raise RuntimeError("start() comes first")
        process = self._process = EngineProcess(self._argv)
        try:
            info = await asyncio.wait_for(process.start(self._config), self._start_timeout)
        except TimeoutError:
            await process.close()
            raise EngineProcessError(f"the engine did not load within {self._start_timeout:g} s") from None
        except BaseException:
            await process.close()
            raise
        return process, info

    async def _supervise(self, process: EngineProcess) -> None:
        """Reads one engine until it fails, then tries for another, until it is given up."""
        alive: EngineProcess | None = process
        while True:
            if alive is not None:
                reason = await self._read(alive)
                await self._lost(alive, reason)
                alive = None
            if self._give_up():
                return
            await asyncio.sleep(self._backoff * 2 ** (len(self._failures) - 1))
            self.restarts += 1
            try:
                alive, self.info = await self._launch()
                self.state = EngineState.RUNNING
                self.on_ready(True)
                logger.warning("engine restarted")
            except (EngineProcessError, OSError) as exc:
                self._record(str(exc))

    async def _read(self, process: EngineProcess) -> str:
        """Delivers one engine's updates until it fails; returns why."""
        while True:
            try:
                messages = [await asyncio.wait_for(process.receive(), self._stall_timeout)]
                # Where the engine is ahead, its updates are delivered together: what streams have not sent yet merges
                # into one chunk, and they catch up.
                messages += process.receive_waiting()
            except TimeoutError:
                return f"the engine was silent for {self._stall_timeout:g} s"
            except EngineProcessError as exc:
                return str(exc)
            for message in messages:
                if isinstance(message, EngineFailed):
                    return message.message
                if isinstance(message, EngineUpdate):
                    self._deliver(message)

    def _deliver(self, update: EngineUpdate) -> None:
        self.stats = update.stats
        for event in update.events:
            sink = self._sinks.get(event.request_id)
            if sink is None:
                continue
            if isinstance(event, TokensSettled | Finished):
                self._waiting.pop(event.request_id, None)
            if isinstance(event, Finished):
                del self._sinks[event.request_id]
                self._finished.append(time.monotonic())
            try:
                sink.put(event)
            except Exception:  # a defect in one request's handling ends that request alone
                logger.exception("an event of request %s could not be handled", event.request_id)
                self.abort([event.request_id])
                sink.fail(EngineFailure("The server had an error while processing your request."))
        self.on_step(update.stats)

    async def _lost(self, process: EngineProcess, reason: str) -> None:
        self.state = EngineState.RESTARTING
        self.on_ready(False)
        self._record(reason)
        self.fail_all(EngineFailure("The engine failed while it worked on this request.", None, "engine_failed"))
        process.kill()  # a stuck one would not hear a goodbye
        await process.close()
        self._process = None

    def _record(self, reason: str) -> None:
        logger.error("engine failed: %s", reason)
        self.failure = reason
        now = time.monotonic()
        self._failures.append(now)
        while self._failures[0] < now - FAILURE_WINDOW:
            self._failures.popleft()

    def _give_up(self) -> bool:
        if len(self._failures) < MAX_FAILURES:
            return False
        self.state = EngineState.FAILED
        self.given_up.set()
        return True
