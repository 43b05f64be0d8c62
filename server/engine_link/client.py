"""The engine process behind the interface of EngineLink; a lost process is replaced by a new one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque

from engine.config import EngineConfig, EngineInfo
from engine.messages import AbortRequests, AddRequests, EngineFailed, EngineUpdate
from engine.request import Request
from server.engine_link.child import EngineChild, EngineChildError
from server.engine_link.in_flight import EventSink
from server.engine_link.link import EngineLink, EngineState
from server.engine_link.patience import wait_running
from server.http.errors import EngineFailure, Unavailable

logger = logging.getLogger("lightcone.engine")

MAX_FAILURES = 3
FAILURE_WINDOW = 300.0
"""Seconds: after MAX_FAILURES failures within this time the server gives up."""
BACKOFF = 0.5
"""Seconds before the first restart; doubled for each further one within the window."""


class EngineClient(EngineLink):
    """One engine process. It is restarted when it dies or falls silent.

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
        super().__init__()
        self._argv, self._stall_timeout, self._start_timeout = argv, stall_timeout, start_timeout
        self._backoff = backoff
        self._config: EngineConfig | None = None
        self._child: EngineChild | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._failures: deque[float] = deque()

    # -- life ---------------------------------------------------------------------------------------------------

    async def start(self, config: EngineConfig) -> EngineInfo:
        """See EngineLink. A failed start is not tried again."""
        self._config = config
        child, info = await self._launch()
        self._supervisor = asyncio.create_task(self._supervise(child))
        self.info, self.state = info, EngineState.RUNNING
        self.on_ready(True)
        return info

    async def stop(self) -> None:
        """See EngineLink."""
        self.state = EngineState.STOPPED
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        self.fail_all(Unavailable("The server is shutting down.", "shutting_down", close=True))
        if self._child is not None:
            await self._child.close()
            self._child = None

    def kill(self) -> None:
        """See EngineLink."""
        if self._child is not None:
            self._child.kill()

    # -- requests -----------------------------------------------------------------------------------------------

    def submit(self, requests: list[Request], sink: EventSink) -> None:
        """See EngineLink."""
        if self.state is not EngineState.RUNNING or self._child is None:
            raise Unavailable("The engine is not available right now; try again shortly.", "engine_unavailable")
        self.in_flight.add(requests, sink)
        self._child.send(AddRequests(requests))

    def abort(self, request_ids: list[str]) -> None:
        """See EngineLink."""
        self.abort_in_engine(self.in_flight.drop(request_ids))

    def abort_in_engine(self, request_ids: list[str]) -> None:
        """See EngineLink."""
        if request_ids and self._child is not None and self.state is EngineState.RUNNING:
            self._child.send(AbortRequests(request_ids))

    # -- inside -------------------------------------------------------------------------------------------------

    async def _launch(self) -> tuple[EngineChild, EngineInfo]:
        if self._config is None:
            raise RuntimeError("start() comes first")
        child = self._child = EngineChild(self._argv)
        try:
            info = await wait_running(child.start(self._config, self.on_loading), self._start_timeout)
        except TimeoutError:
            await child.close()
            raise EngineChildError(f"the engine did not load within {self._start_timeout:g} s") from None
        except BaseException:
            await child.close()
            raise
        return child, info

    async def _supervise(self, child: EngineChild) -> None:
        """Reads one engine until it fails, then tries for another, until it is given up."""
        alive: EngineChild | None = child
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
            except (EngineChildError, OSError) as exc:
                self._record_failure(str(exc))

    async def _read(self, child: EngineChild) -> str:
        """Delivers one engine's updates until it fails. Returns why it failed, in one line."""
        while True:
            try:
                messages = [await wait_running(child.receive(), self._stall_timeout)]
                # Where the engine is ahead, its updates are delivered together: text that streams have not sent yet
                # merges into one chunk, and they catch up.
                messages += child.receive_waiting()
            except TimeoutError:
                return f"the engine was silent for {self._stall_timeout:g} s"
            except EngineChildError as exc:
                return str(exc)
            for message in messages:
                if isinstance(message, EngineFailed):
                    return message.message
                if isinstance(message, EngineUpdate):
                    self.deliver(message)

    async def _lost(self, child: EngineChild, reason: str) -> None:
        self.state = EngineState.RESTARTING
        self.on_ready(False)
        self._record_failure(reason)
        self.fail_all(EngineFailure("The engine failed while it worked on this request.", None, "engine_failed"))
        child.kill()  # a stuck process would not react to a request to leave
        await child.close()
        self._child = None

    def _record_failure(self, reason: str) -> None:
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
