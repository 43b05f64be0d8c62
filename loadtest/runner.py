"""Drives a load: closed loop by concurrency or open loop by arrival rate, with a warm-up, bounded in time and count."""

import asyncio
import itertools
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from loadtest.http_client import Client
from loadtest.records import Record
from loadtest.workload import Prompt, poisson_arrivals

OnRecord = Callable[[Record], None]

_PAUSE_AFTER_ERROR_S = 0.1
"""A closed loop's worker waits this long after a failure, so that it does not spin on a server that is down."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """The amount of load. At least one of `requests` and `duration_s` bounds it."""

    concurrency: int = 1
    """Closed loop: requests in flight. Open loop: the most in flight; others wait, and their wait counts."""
    rate: float | None = None
    """Open loop: Poisson arrivals a second. None: closed loop."""
    requests: int | None = None
    duration_s: float | None = None
    """No request starts later than this; those in flight are waited for."""
    warmup: int = 0
    """Requests sent before the clock starts, at the same concurrency; not reported."""
    seed: int = 0


class Outcome(msgspec.Struct, kw_only=True):
    """The records of one run, in order of completion; `start_s` counts from the run's start."""

    records: list[Record]
    wall_s: float
    cpu_s: float
    abandoned: int = 0
    interrupted: bool = False


@contextmanager
def interruptible() -> Iterator[asyncio.Event]:
    """An event that Ctrl-C sets (the first one; a second one kills). Needs a running loop."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def stop() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        event.set()

    loop.add_signal_handler(signal.SIGINT, stop)
    try:
        yield event
    finally:
        loop.remove_signal_handler(signal.SIGINT)


async def run_load(
    client: Client,
    prompts: Iterator[Prompt],
    load: Load,
    stop: asyncio.Event | None = None,
    on_record: OnRecord | None = None,
) -> Outcome:
    """Warm up, then run the load until a bound is reached or `stop` is set; then what is in flight is abandoned."""
    stop = stop if stop is not None else asyncio.Event()
    if load.requests is None and load.duration_s is None:
        raise ValueError("A load needs a bound: a number of requests, a duration, or both.")
    if load.warmup:
        warm = Load(concurrency=min(load.concurrency, load.warmup), requests=load.warmup)
        await _until(stop, _Run(client, prompts, warm, stop).closed_loop())
    run = _Run(client, prompts, load, stop, on_record)
    cpu, start = time.process_time(), time.perf_counter()
    run.origin = start
    await _until(stop, run.closed_loop() if load.rate is None else run.open_loop())
    wall = time.perf_counter() - start
    return Outcome(
        records=run.records,
        wall_s=wall,
        cpu_s=time.process_time() - cpu,
        abandoned=run.in_flight,
        interrupted=stop.is_set(),
    )


async def _until(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Run `work` to its end, or cancel it as soon as `stop` is set."""
    task, stopper = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((task, stopper), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for pending in (task, stopper):
            pending.cancel()
        results = await asyncio.gather(task, stopper, return_exceptions=True)
    if isinstance(results[0], Exception):
        raise results[0]


class _Run:
    def __init__(
        self,
        client: Client,
        prompts: Iterator[Prompt],
        load: Load,
        stop: asyncio.Event,
        on_record: OnRecord | None = None,
    ) -> None:
        self.client, self.prompts, self.load, self.stop, self.on_record = client, prompts, load, stop, on_record
        self.records: list[Record] = []
        self.origin = time.perf_counter()
        self.in_flight = 0
        self._next = itertools.count()

    async def closed_loop(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self.load.concurrency):
                group.create_task(self._worker())

    async def _worker(self) -> None:
        while not self._over(time.perf_counter()):
            index = next(self._next)
            if self.load.requests is not None and index >= self.load.requests:
                return
            record = await self._one(index, next(self.prompts), time.perf_counter())
            if record.error:
                await asyncio.sleep(_PAUSE_AFTER_ERROR_S)

    async def open_loop(self) -> None:
        assert self.load.rate is not None
        gate = asyncio.Semaphore(self.load.concurrency)
        async with asyncio.TaskGroup() as group:
            for index, offset in enumerate(poisson_arrivals(self.load.rate, self.load.seed)):
                due = self.origin + offset
                if self._over(due) or (self.load.requests is not None and index >= self.load.requests):
                    return
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                group.create_task(self._gated(gate, index, next(self.prompts), due))

    async def _gated(self, gate: asyncio.Semaphore, index: int, prompt: Prompt, due: float) -> None:
        async with gate:
            await self._one(index, prompt, due)

    async def _one(self, index: int, prompt: Prompt, due: float) -> Record:
        self.in_flight += 1
        record = await self.client.send(prompt, index, due)
        self.in_flight -= 1
        record.start_s -= self.origin
        self.records.append(record)
        if self.on_record is not None:
            self.on_record(record)
        return record

    def _over(self, at: float) -> bool:
        return self.stop.is_set() or (self.load.duration_s is not None and at - self.origin >= self.load.duration_s)
