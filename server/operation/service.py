"""The running service: it starts and stops the engine, holds the model once it is loaded, and drains at the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar, TypeVarTuple, Unpack

import anyio.to_thread
import msgspec

from engine.config import EngineInfo
from engine.errors import EngineError
from engine.events import StepStats
from server.engine_link.child import EngineChildError
from server.engine_link.grammar_checker import GrammarChecker
from server.engine_link.link import EngineLink, EngineState
from server.http.errors import TOO_MANY_CONNECTIONS, Refusal, Unavailable
from server.operation.admission import Admission
from server.operation.config import Config
from server.operation.loading import Loading, LoadProgress
from server.operation.logs import OncePerSecond
from server.operation.metrics import Metrics
from server.text.model_files import FetchWatcher, default_name, resolve_model
from server.text.served_model import Parsers, ServedModel
from server.tracing.tracer import Tracer

logger = logging.getLogger("lightcone.server")

FAREWELL_SECONDS = 2.0
"""Time for clients to read that the server is shutting down."""


_Args = TypeVarTuple("_Args")
_T = TypeVar("_T")


def loaded_text(name: str, info: EngineInfo) -> str:
    """The start-up line for people. It says so where answers are approximate."""
    weights = "" if info.quantization == "none" else f", {info.quantization} weights"
    device = info.device
    if info.tensor_parallel_size > 1:
        device = f"{info.tensor_parallel_size} ranks ({device})"
    text = f"model loaded: {name}, {info.dtype}{weights} on {device}, context of {info.max_model_len} tokens"
    if info.published:
        text += f"; {info.published}"
    if info.context_cache != "none":
        text += f"; answers are approximate: context cache '{info.context_cache}'"
    return text


async def _in_thread(function: Callable[[Unpack[_Args]], _T], *args: *_Args) -> _T:
    """Runs a blocking function in a thread; a shutdown does not wait for it."""
    return await anyio.to_thread.run_sync(function, *args, abandon_on_cancel=True)


class Service:
    """The state that all requests of one application share. Lives on one event loop."""

    def __init__(self, config: Config, engine: EngineLink, tracer: Tracer | None = None) -> None:
        self.config = config
        self.engine = engine
        self.tracer = tracer
        """None: nothing is traced."""
        self.name = config.server.served_model_name or default_name(config.engine.model)
        self.metrics = Metrics(self.name)
        self.admission = Admission(
            engine,
            max_running=config.engine.max_running,
            max_queued=config.server.max_queued_requests,
            max_queued_tokens=config.server.max_queued_tokens,
        )
        self.model: ServedModel | None = None
        """None until it has been loaded."""
        self.grammars: GrammarChecker | None = None
        """None until a model has been loaded."""
        self.loading = Loading(self.name)
        """How far a model is that is not served yet, or not again."""
        self.loaded = asyncio.Event()
        """Set once the model has been loaded."""
        self.draining = False
        """The server is no longer ready: a load balancer should send no more."""
        self.refusing = False
        """New work is answered 503."""
        self.parsing = asyncio.Semaphore(1)
        """Held while a large request body is parsed in a thread."""
        self._active = 0  # HTTP requests being answered, probes not counted
        self._idle = asyncio.Event()
        self._idle.set()
        self.fatal: str | None = None
        """Why the server must exit, in one line; None while it need not."""
        self.ended = asyncio.Event()
        """Set when the server must exit because of `fatal`."""
        self._loader: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._restarts = 0
        self._beyond_limit = OncePerSecond()
        engine.on_step = self._on_step
        engine.on_ready = self._on_ready
        engine.on_loading = self.loading.tell_reading

    # -- life ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begins to load the model in the background."""
        self._loader = asyncio.create_task(self._load())
        self._watch = asyncio.create_task(self._watch_engine())

    async def close(self) -> None:
        """Stops everything at once."""
        self.loading.end()
        for task in (self._loader, self._watch):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await self.engine.stop()
        if self.grammars is not None:
            await self.grammars.close()
        if self.tracer is not None:
            await self.tracer.close()

    async def _load(self) -> None:
        try:
            self.loading.enter("starting")
            directory = await _in_thread(resolve_model, self.config.engine.model, self._fetch_watcher())
            self.loading.enter("starting")
            config = msgspec.structs.replace(self.config.engine, model=str(directory))
            info = await self.engine.start(config)
            await self._open_model(info, directory)
        except (EngineError, EngineChildError) as exc:
            self._fail(str(exc))
        except Exception as exc:
            logger.exception("loading failed")
            self._fail(f"loading failed: {type(exc).__name__}: {exc}")

    def _fetch_watcher(self) -> FetchWatcher:
        """Takes news of a download from its threads to the event loop."""
        loop = asyncio.get_running_loop()

        def tell(*progress: int) -> None:
            loop.call_soon_threadsafe(self.loading.tell, LoadProgress("fetching", *progress))

        return tell

    async def _open_model(self, info: EngineInfo, directory: Path) -> None:
        options = self.config.server
        parsers = Parsers(options.tool_call_parser, options.reasoning_parser)
        load = partial(ServedModel.load, dummy=self.config.engine.load_format == "dummy", parsers=parsers)
        self.grammars = GrammarChecker(info, directory)
        self.model = await _in_thread(load, self.name, info, directory)
        self.loading.end()
        self.loaded.set()
        text = loaded_text(self.name, info)
        fields = {"model": self.name, **msgspec.to_builtins(info)}
        logger.info("model loaded", extra={"fields": fields, "text": text})

    async def _watch_engine(self) -> None:
        await self.engine.given_up.wait()
        self._fail(f"the engine failed too often, at last: {self.engine.failure}")

    def _fail(self, message: str) -> None:
        self.loading.end()
        self.fatal = " ".join(message.split())
        self.ended.set()

    async def drain(self) -> None:
        """Shuts down in order: no longer ready, then no new work, then what is in flight finishes or is told to end."""
        options = self.config.server
        self.draining = True
        logger.info("draining")
        if self.model is not None:
            await asyncio.sleep(options.drain_delay)
        self.refusing = True
        if not await self._idle_within(options.drain_timeout):
            logger.warning("ending %d unfinished requests after the drain timeout", self._active)
            self.engine.fail_all(Unavailable("The server is shutting down.", "shutting_down", close=True))
            await self._idle_within(FAREWELL_SECONDS)

    async def _idle_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            return False
        return True

    @contextmanager
    def answering(self) -> Generator[None, None, None]:
        """Counts one request that a drain must wait for."""
        self._active += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()

    def record_refusal(self, refusal: Refusal) -> None:
        """Counts and logs a request that no work was done for. Connections beyond the limit are one line a second."""
        self.metrics.record_rejection(refusal.code)
        fields = {name: value for name, value in refusal._asdict().items() if value is not None}
        if refusal.code == TOO_MANY_CONNECTIONS:
            if not self._beyond_limit.due():
                return
            fields["repeated"] = self._beyond_limit.missed
        logger.info("refused", extra={"fields": fields})

    # -- state --------------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """The state in one word, as /health and /ready show it."""
        if self.draining:
            return "draining"
        if self.fatal is not None or self.engine.state is EngineState.FAILED:
            return "failed"
        if self.engine.state is EngineState.RESTARTING:
            return "restarting"
        return "loading" if self.model is None else "serving"

    @property
    def ready(self) -> bool:
        """New work is taken."""
        return self.state == "serving" and self.engine.state is EngineState.RUNNING

    def require_model(self) -> ServedModel:
        """The loaded model. Raises Unavailable while it is loading."""
        if self.model is None:
            raise Unavailable("The model is still loading; try again shortly.", "model_loading")
        return self.model

    def _on_step(self, stats: StepStats) -> None:
        self.metrics.record_step(stats)

    def _on_ready(self, up: bool) -> None:
        if up and self.engine.info is not None:
            self.metrics.set_engine(self.engine.info)
            if self.model is not None:  # else its tokenizer is still to be read
                self.loading.end()
        else:
            self.metrics.engine_lost()
            self.loading.enter("starting")
        self.metrics.restarts_total.inc(self.engine.restarts - self._restarts)
        self._restarts = self.engine.restarts
