"""How far a model is from being served, and who is told of it: /health, the log, and a person at a terminal."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Literal

import msgspec

from engine.messages import EngineLoading

logger = logging.getLogger("lightcone.server")

Stage = Literal["fetching", "starting", "reading", "preparing"]
"""Files from a hub, the engine's process, weights, and what comes after them: measuring, capturing passes."""

LOG_SECONDS = 10.0
"""Between two lines of the log about a model that is still loading."""
MEGA, GIGA = 1e6, 1e9


class LoadProgress(msgspec.Struct, frozen=True):
    """How far a model is. Bytes and files are of the stage `fetching` or `reading`, and 0 where they are not known."""

    stage: Stage
    bytes: int = 0
    total_bytes: int = 0
    files: int = 0
    total_files: int = 0


class Loading:
    """Follows one model at a time from its first stage until it is served. Lives on one event loop."""

    def __init__(self, name: str) -> None:
        self.name = name
        """Of the model."""
        self.progress: LoadProgress | None = None
        """None while nothing is being loaded."""
        self.on_change: Callable[[LoadProgress | None], None] = lambda progress: None
        """Called with each news; with None at the end, whether it is a good one or not."""
        self._started = 0.0
        self._log: asyncio.Task[None] | None = None

    @property
    def seconds(self) -> float:
        """Time since the first stage began."""
        return time.monotonic() - self._started

    def enter(self, stage: Stage) -> None:
        """A stage begins of which nothing more is known yet."""
        self.tell(LoadProgress(stage))

    def tell(self, progress: LoadProgress) -> None:
        """Takes in how far it is."""
        if self.progress is None:
            self._started = time.monotonic()
            self._log = asyncio.create_task(self._log_now_and_then())
        self.progress = progress
        self.on_change(progress)

    def tell_reading(self, message: EngineLoading) -> None:
        """Takes in what the engine says of its weights; once it has them all, it prepares."""
        if message.bytes >= message.total_bytes:
            self.enter("preparing")
        else:
            self.tell(LoadProgress("reading", message.bytes, message.total_bytes, message.files, message.total_files))

    def end(self) -> None:
        """Nothing is being loaded any more."""
        if self._log is not None:
            self._log.cancel()
            self._log = None
        if self.progress is not None:
            self.progress = None
            self.on_change(None)

    async def _log_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(LOG_SECONDS)
            if self.progress is None:
                return
            known = {name: value for name, value in msgspec.to_builtins(self.progress).items() if value}
            fields = {"model": self.name, **known, "seconds": round(self.seconds, 1)}
            text = f"loading {self.name}: {described(self.progress)}, {self.seconds:.0f} s so far"
            logger.info("loading", extra={"fields": fields, "text": text})


def described(progress: LoadProgress) -> str:
    """In words for people, such as "reading 3.1 of 16.4 GB, 1 of 4 files"."""
    words = {"starting": "starting the engine", "preparing": "preparing passes"}.get(progress.stage, progress.stage)
    if progress.total_bytes:
        unit, name = (GIGA, "GB") if progress.total_bytes >= GIGA else (MEGA, "MB")
        words += f" {progress.bytes / unit:.1f} of {progress.total_bytes / unit:.1f} {name}"
    if progress.total_files > 1:
        words += f", {progress.files} of {progress.total_files} files"
    return words
