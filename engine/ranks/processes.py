"""RankProcesses: the other ranks as children of this process, started, watched, and ended with it."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from engine.config import EngineConfig
from engine.errors import RankError
from engine.ranks.group import ProcessGroup
from engine.ranks.link import RankLink, link_pair

log = logging.getLogger("lightcone.engine")

_ROOT = str(Path(__file__).resolve().parents[2])

COMMAND = (sys.executable, "-P", "-m", "engine.runner.rank")
REASON_SECONDS = 0.5
"""Longest wait for the news that a rank is gone, once something has failed that a lost rank would explain."""
GRACE_SECONDS = 1.5
"""Time for this process to notice by itself that a rank is gone, and to say so; then it is ended."""
STOP_SECONDS = 2.0
"""Time for a rank to leave before it is killed."""


class RankStart(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of a rank's standard input."""

    config: EngineConfig
    rank: int
    store: str
    """The file by which the ranks find each other."""
    link: int
    """The file descriptor of its link to rank 0."""


@dataclass
class _Child:
    rank: int
    process: subprocess.Popen[bytes]
    link: RankLink


class RankProcesses:
    """Ranks 1 to size - 1. A rank that ends unasked ends this process: no pass can be run without it.

    A rank leaves when its standard input ends, so none is left behind however this process ends.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        directory: Path | None = None,
        on_lost: Callable[[str], None] | None = None,
        command: Sequence[str] = COMMAND,
    ) -> None:
        """Starts them. directory: a private one, for the file by which they find each other; None: a new one.

        on_lost: ends this process; called in another thread with one line, where this process has not noticed in time
        that a rank is gone. None: `os._exit`. command: what runs a rank.
        """
        self.size = config.tensor_parallel_size
        self.group = ProcessGroup(0, self.size)
        self._own = tempfile.TemporaryDirectory(prefix="lightcone-ranks-") if directory is None else None
        folder = directory if self._own is None else Path(self._own.name)
        self._store = Path(folder or "", f"ranks-{secrets.token_hex(8)}")
        self._on_lost = on_lost or (lambda reason: os._exit(1))
        self._lost: str | None = None
        self._news = threading.Event()
        self._closing = threading.Event()
        self._children = [self._start(config, rank, command) for rank in range(1, self.size)]
        for child in self._children:
            name = f"rank-{child.rank}-watch"
            threading.Thread(target=self._watch, args=(child,), name=name, daemon=True).start()

    def _start(self, config: EngineConfig, rank: int, command: Sequence[str]) -> _Child:
        ours, theirs = link_pair()
        found = os.pathsep.join([_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])])
        process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, pass_fds=(theirs.fileno,), env={**os.environ, "PYTHONPATH": found}
        )
        start = RankStart(config=config, rank=rank, store=str(self._store), link=theirs.fileno)
        theirs.close()
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(msgspec.json.encode(start) + b"\n")
                process.stdin.flush()
        return _Child(rank, process, ours)

    @property
    def pids(self) -> list[int]:
        """The process ids of the ranks from 1 on."""
        return [child.process.pid for child in self._children]

    def join(self, device: torch.device) -> None:
        """Waits until every rank has loaded its share. device: this rank's. Raises RankError if one is gone."""
        try:
            self.group.join(self._store, device)
        except RuntimeError as error:
            raise self.error(error) from error

    def send(self, frame: bytes) -> None:
        """Sends one frame to every rank. Raises RankError if one of them is gone."""
        try:
            for child in self._children:
                child.link.send(frame)
        except OSError as error:
            raise self.error(error) from error

    def receive(self) -> list[bytes | None]:
        """Waits for one frame of every rank, in their order; None of one that is gone."""
        return [child.link.receive() for child in self._children]

    def error(self, cause: Exception) -> RankError:
        """The error for a failure of something that all ranks do together; it names a rank that is gone."""
        self._news.wait(REASON_SECONDS)
        return RankError(self._lost or f"the ranks failed: {type(cause).__name__}: {cause}".splitlines()[0])

    def _watch(self, child: _Child) -> None:
        """Waits for the end of a rank; unless that was asked for, has this process end as well."""
        code = child.process.wait()
        if self._closing.is_set():
            return
        last = child.link.receive()  # what it said last, if anything: its end of the link is closed
        reason = last.decode() if last else f"ended ({_in_words(code)})"
        if self._lost is None:
            self._lost = f"rank {child.rank} of {self.size}: {reason}"
            log.error("%s", self._lost)
        self._news.set()
        if self._closing.wait(GRACE_SECONDS):
            return
        self._on_lost(self._lost)

    def close(self) -> None:
        """Ends the ranks and waits until they are gone. Idempotent."""
        self._closing.set()
        for child in self._children:
            child.link.close()
            if child.process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    child.process.stdin.close()
        for child in self._children:
            try:
                child.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
        if self._lost is None:
            self.group.leave()
        self._store.unlink(missing_ok=True)
        if self._own is not None:
            self._own.cleanup()


def _in_words(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"
