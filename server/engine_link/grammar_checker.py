"""Checks that a grammar compiles, in a worker process that may be killed, before the engine gets the request.

A grammar is therefore compiled twice: once here, with bounds on time and memory, and once in the engine, with neither.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import sys
import time
from collections import OrderedDict
from pathlib import Path

import msgspec

from engine.config import EngineInfo
from engine.errors import RequestError
from engine.request import Grammar
from engine.validate import check_grammar_size
from server.engine_link.child import package_environment
from server.http.errors import BadRequest, Overloaded, Unavailable

COMPILE_SECONDS = 5.0
"""Most time that compiling one grammar may take."""
COMPILE_BYTES = 2**30
"""Most memory that the worker may take for it, beyond what it has when it is ready."""
REMEMBER_KILLS = 60.0
"""Seconds for which a grammar whose compilation had to be stopped is refused at once. Later it may be tried again."""
START_SECONDS = 60.0
"""Time the worker may take to read the tokenizer."""


class WorkerDied(Exception):
    """The worker process is gone: the grammar it was compiling needed more time or memory than it may have."""


class GrammarChecker:
    """Compiles each new grammar once in a worker process, one at a time; lives on one event loop.

    The worker is started when the first grammar comes and again after it had to be killed.
    """

    def __init__(
        self,
        info: EngineInfo,
        directory: Path,
        *,
        seconds: float = COMPILE_SECONDS,
        memory_bytes: int = COMPILE_BYTES,
        cache_size: int = 512,
        max_waiting: int = 16,
    ) -> None:
        """info, directory: the loaded model's. seconds: most time one grammar may take; memory_bytes: most memory.

        cache_size: verdicts kept; max_waiting: grammars that may wait for the worker before more are turned away.
        """
        self._argv = [
            *(sys.executable, "-P", "-m", "engine.grammar.worker", "--tokenizer", str(directory / "tokenizer.json")),
            *(f"--vocab-size={info.vocab_size}", f"--mask-token-id={info.mask_token_id}"),
            *(f"--end-token-id={token}" for token in info.end_token_ids),
            *(f"--memory-bytes={memory_bytes}", f"--cpu-seconds={math.ceil(seconds)}"),
        ]
        self._seconds, self._cache_size, self._max_waiting = seconds, cache_size, max_waiting
        self._verdicts: OrderedDict[bytes, tuple[str | None, float]] = OrderedDict()  # error, when it expires
        self._lock = asyncio.Lock()
        self._waiting = 0
        self._process: asyncio.subprocess.Process | None = None
        self._killed: list[asyncio.subprocess.Process] = []

    async def check(self, grammar: Grammar, param: str | None = None) -> None:
        """Returns if the grammar compiles.

        Raises BadRequest that says in one line why it does not, naming `param`; Overloaded when too many wait already;
        Unavailable when the worker cannot be started.
        """
        try:
            check_grammar_size(grammar)
        except RequestError as error:
            raise BadRequest(str(error), param, "invalid_value") from None
        key = hashlib.sha256(f"{grammar.kind}:{grammar.compact}:{grammar.source}".encode()).digest()
        known = self._recall(key)
        if known is None:
            known = await self._ask_in_turn(key, grammar)
        error_line, _ = known
        if error_line is not None:
            raise BadRequest(error_line, param, "invalid_grammar")

    def kill(self) -> None:
        """Ends the worker at once, without waiting. The next grammar starts another."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            self._killed.append(process)

    async def close(self) -> None:
        """Ends the worker and waits until it is gone. Idempotent."""
        self.kill()
        await self._await_killed()

    # -- inside -------------------------------------------------------------------------------------------------

    def _recall(self, key: bytes) -> tuple[str | None, float] | None:
        entry = self._verdicts.get(key)
        if entry is not None and entry[1] < time.monotonic():
            del self._verdicts[key]
            return None
        if entry is not None:
            self._verdicts.move_to_end(key)
        return entry

    async def _ask_in_turn(self, key: bytes, grammar: Grammar) -> tuple[str | None, float]:
        if self._waiting >= self._max_waiting:
            raise Overloaded("Too many new grammars are waiting; try again shortly.", math.ceil(self._seconds))
        self._waiting += 1
        try:
            async with self._lock:
                known = self._recall(key)  # somebody may have asked the same meanwhile
                if known is None:
                    known = self._verdicts[key] = await self._ask(grammar)
                    while len(self._verdicts) > self._cache_size:
                        self._verdicts.popitem(last=False)
                return known
        finally:
            self._waiting -= 1

    async def _ask(self, grammar: Grammar) -> tuple[str | None, float]:
        """The worker's verdict and when it expires. After any failure the worker is replaced: it may be mid-answer."""
        try:
            if self._process is None or self._process.returncode is not None:
                self.kill()
                unusable = await self._start()
                if unusable is not None:
                    self.kill()
                    return unusable, math.inf
            return await self._exchange(msgspec.json.encode(grammar) + b"\n", self._seconds), math.inf
        except TimeoutError:
            self.kill()
            refusal = f"The grammar cannot be used: compiling it takes longer than {self._seconds:g} seconds."
            return refusal, time.monotonic() + REMEMBER_KILLS
        except WorkerDied:
            self.kill()
            refusal = "The grammar cannot be used: compiling it needs too much time or memory."
            return refusal, time.monotonic() + REMEMBER_KILLS
        except BaseException:
            self.kill()
            raise

    async def _start(self) -> str | None:
        """Starts a worker and waits until it has read the tokenizer; says so if no grammar can be used with that."""
        await self._await_killed()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._argv,
                env=package_environment(),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,  # a client could make a library write without end
                start_new_session=True,
            )
            return await self._exchange(b"", START_SECONDS)
        except (OSError, WorkerDied):  # an OSError also where no file descriptor or process is left, or time
            message = "Grammars cannot be compiled right now; try again shortly."
            raise Unavailable(message, "grammar_unavailable") from None

    async def _exchange(self, line: bytes, seconds: float) -> str | None:
        """Sends a line, returns the answer. Raises TimeoutError or WorkerDied."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise WorkerDied
        try:
            process.stdin.write(line)
            answer = await asyncio.wait_for(process.stdout.readline(), seconds)
        except (BrokenPipeError, ConnectionResetError):
            raise WorkerDied from None
        if not answer.endswith(b"\n"):
            raise WorkerDied
        return msgspec.json.decode(answer, type=str | None)

    async def _await_killed(self) -> None:
        """Waits for killed workers to be gone, and closes what is left of their pipes."""
        while self._killed:
            await self._killed.pop().communicate()
