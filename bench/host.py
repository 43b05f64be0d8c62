"""Where the time of an engine step goes outside the model: schedule, pack, decide, conclude, commit, messages.

The parts are timed in real steps of a real engine, by wrapping its methods for the length of a run.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import zmq

from bench.measure import clock_for, typical, wrapped
from engine.engine import Engine
from engine.events import GenerationEvent, StepStats
from engine.measure.device_speed import synchronise
from engine.messages import EngineUpdate
from engine.process import EngineProcess
from engine.request import Decoding, DecodingParams, Request, SamplingParams

PARTS = ("schedule", "pack", "model", "decide", "conclude", "commit", "messages")
"""`model` is attention's preparation, the decoder and the head; `decide` is the policies' tensor arithmetic (sampling);
`conclude` is the copy to the host and what it means for each sequence; everything but `model` is host time."""

CYCLE = 16
"""In AR every sequence crosses a page once in so many steps (page_size 16), a full batch all at once; the price of that
must not vanish in a median."""


@dataclass(frozen=True)
class Setting:
    """One way to keep an engine busy."""

    decoding: Decoding = "ar"
    batch: int = 16
    context: int = 64
    """Prompt tokens."""
    temperature: float = 0.0
    served: int = 0
    """Requests that the engine has answered before."""


@dataclass
class HostTime:
    """What the steps of one setting cost, in seconds."""

    setting: Setting
    steps: list[dict[str, float]] = field(default_factory=list)
    """Seconds by part, of every step in which the whole batch decoded."""

    def part(self, name: str) -> float:
        return typical([step[name] for step in self.steps], CYCLE)

    @property
    def step(self) -> float:
        """The whole step, messages included."""
        return typical([sum(step.values()) for step in self.steps], CYCLE)

    @property
    def host(self) -> float:
        """All of it but the model."""
        return typical([sum(step.values()) - step["model"] for step in self.steps], CYCLE)

    @property
    def share(self) -> float:
        return self.host / self.step

    def figures(self) -> dict[str, object]:
        """For tables and files; times in microseconds."""
        setting = self.setting
        times = {name: round(self.part(name) * 1e6, 1) for name in PARTS}
        return {
            "decoding": setting.decoding,
            "batch": setting.batch,
            "context": setting.context,
            "temperature": setting.temperature,
            "served": setting.served,
            "step_us": round(self.step * 1e6, 1),
            "host_us": round(self.host * 1e6, 1),
            "host_share": round(self.share, 4),
            **{f"{name}_us": value for name, value in times.items()},
        }


class StepClock:
    """Seconds that an engine's parts took since `take` was last called."""

    def __init__(self, engine: Engine) -> None:
        self.now = clock_for(engine.device).now
        self._engine = engine
        self._spent: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Wraps the engine's methods until the context ends."""
        engine, runner = self._engine, self._engine.runner
        methods: list[tuple[object, str, str]] = [
            (engine.scheduler, "schedule", "schedule"),
            (engine.scheduler, "apply", "commit"),
            (runner, "forward", "forward"),
            (runner.attention, "prepare", "model"),
            (runner.decoder, "forward", "model"),
            (runner.decoder, "logits", "model"),
        ]
        if runner.graphs is not None:
            methods.append((runner.graphs, "forward", "model"))
        methods += [(policy, "decide", "decide") for policy in (*engine.policies.values(), engine.prefill)]
        with ExitStack() as stack:
            for owner, name, part in methods:
                stack.enter_context(wrapped(owner, name, self._timed(part)))
            yield

    def take(self, duration: float, messages: float) -> dict[str, float]:
        """The parts of a step that took `duration` seconds, and then `messages` for what it had to say."""
        spent, self._spent = self._spent, defaultdict(float)
        parts = {name: spent[name] for name in ("schedule", "model", "decide", "commit")}
        parts["pack"] = spent["forward"] - spent["model"]
        parts["conclude"] = duration - spent["schedule"] - spent["forward"] - spent["decide"] - spent["commit"]
        parts["messages"] = messages
        return parts

    def _timed(self, part: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        spent_by, device, now = self, self._engine.device, self.now

        def wrap(method: Callable[..., Any]) -> Callable[..., Any]:
            def timed(*args: Any, **kwargs: Any) -> Any:
                started = now()
                result = method(*args, **kwargs)
                synchronise(device)
                spent_by._spent[part] += now() - started
                return result

            return timed

        return wrap


class Wire:
    """The engine process's end of the socket, with somebody who reads what it says."""

    def __init__(self, engine: Engine) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._reader = self._context.socket(zmq.PAIR)
        self._reader.bind("inproc://bench")
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.connect("inproc://bench")
        self._process = EngineProcess(engine, self._socket)

    def tell(self, events: list[GenerationEvent], stats: StepStats) -> None:
        """What the engine process does for messages in one step: looks for some, encodes and sends its own."""
        self._socket.poll(0)
        self._process.send(EngineUpdate(events, stats))

    def read(self) -> None:
        """Takes the message off the wire."""
        self._reader.recv()

    def close(self) -> None:
        self._socket.close(linger=0)
        self._reader.close(linger=0)
        self._context.term()


def measure_host(engine: Engine, setting: Setting, cycles: int) -> HostTime:
    """Runs full batches until `cycles` times CYCLE steps have been measured."""
    result = HostTime(setting)
    clock, wire = StepClock(engine), Wire(engine)
    wanted = cycles * CYCLE
    try:
        with clock.running():
            while len(result.steps) < wanted:
                before = len(result.steps)
                _run_batch(engine, clock, wire, result, wanted)
                if len(result.steps) == before:
                    break  # answers too short for a single full step
    finally:
        wire.close()
    return result


def _run_batch(engine: Engine, clock: StepClock, wire: Wire, result: HostTime, wanted: int) -> None:
    setting = result.setting
    ids = _add_batch(engine, setting, engine.info.max_model_len - setting.context)
    while engine.has_work:
        started = clock.now()
        events, stats = engine.step()
        stepped = clock.now()
        wire.tell(events, stats)
        parts = clock.take(stepped - started, clock.now() - stepped)
        wire.read()
        whole = stats.sequences == setting.batch == stats.running
        if whole and "prefill" not in stats.phases:
            result.steps.append(parts)
        if len(result.steps) >= wanted:
            break
    for request_id in ids:
        engine.abort(request_id)


def serve(engine: Engine, count: int) -> None:
    """Answers `count` short requests, so that whatever grows with requests served has grown."""
    most = engine.config.max_running
    while count > 0:
        _add_batch(engine, Setting(batch=min(count, most), context=8), 1)
        count -= most
        while engine.has_work:
            engine.step()


def _add_batch(engine: Engine, setting: Setting, max_tokens: int) -> list[str]:
    """Prompts of distinct tokens that no earlier run has left in the prefix cache."""
    info = engine.info
    ids = [f"{time.monotonic_ns()}-{i}" for i in range(setting.batch)]
    usable = [token for token in range(info.vocab_size) if token not in info.banned_token_ids]
    for i, request_id in enumerate(ids):
        engine.add(
            Request(
                request_id=request_id,
                prompt_token_ids=[usable[(101 * i + 7 * j) % len(usable)] for j in range(setting.context)],
                max_tokens=max_tokens,
                sampling=SamplingParams(temperature=setting.temperature, seed=i),
                decoding=DecodingParams(mode=setting.decoding, block_length=info.block_length),
                ignore_eos=True,
                cache_salt=request_id,
            )
        )
    return ids
