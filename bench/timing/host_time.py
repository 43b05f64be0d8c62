"""Host time: the time of an engine step outside the model, by part.

The parts (PARTS) are timed in real steps of a real engine, by wrapping its methods for the length of a run.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import zmq

from bench.timing.pass_times import typical, wrapped
from engine.device.devices import synchronise
from engine.engine import Engine
from engine.events import GenerationEvent, StepStats
from engine.measure.clock import clock_for
from engine.messages import EngineUpdate
from engine.process import EngineProcess
from engine.request import Decoding, DecodingParams, Request, SamplingParams

PARTS = ("schedule", "pack", "model", "decide", "conclude", "commit", "messages")
"""`model` is attention's preparation, the decoder and the head; `decide` is the policies' tensor arithmetic (sampling);
`conclude` is the copy to the host and what it means for each sequence; everything but `model` is host time."""

CYCLE = 16
"""Steps after which every sequence of an AR batch needs another page (page_size 16). All sequences need it in the same
step, so a plain median would leave its cost out."""


@dataclass(frozen=True)
class Setting:
    """A load of the engine under which host time is measured."""

    decoding: Decoding = "ar"
    batch: int = 16
    context: int = 64
    """Tokens of each prompt."""
    temperature: float = 0.0
    served: int = 0
    """Number of requests that the engine has answered before."""


@dataclass
class HostTime:
    """The measured steps of one setting, in seconds."""

    setting: Setting
    steps: list[dict[str, float]] = field(default_factory=list)
    """Seconds by part, of every step in which the whole batch decoded."""

    def part(self, name: str) -> float:
        """Seconds of one part in a typical step."""
        return typical([step[name] for step in self.steps], CYCLE)

    @property
    def step(self) -> float:
        """Seconds of a typical step, messages included."""
        return typical([sum(step.values()) for step in self.steps], CYCLE)

    @property
    def host(self) -> float:
        """Seconds of a typical step outside the model."""
        return typical([sum(step.values()) - step["model"] for step in self.steps], CYCLE)

    @property
    def share(self) -> float:
        """Host time as a share of the step."""
        return self.host / self.step

    def figures(self) -> dict[str, object]:
        """The row of tables and files. Times are in microseconds."""
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
        device_pass = runner.device_pass
        methods: list[tuple[object, str, str]] = [
            (engine.scheduler, "schedule", "schedule"),
            (engine.scheduler, "apply", "commit"),
            (runner, "forward", "forward"),
            (device_pass.attention, "prepare", "model"),
            (device_pass.decoder, "forward", "model"),
            (device_pass.decoder, "logits", "model"),
        ]
        if device_pass.graphs is not None:
            methods.append((device_pass.graphs, "forward", "model"))
        methods += [(policy, "decide", "decide") for policy in (*engine.policies.values(), engine.prefill)]
        with ExitStack() as stack:
            for owner, name, part in methods:
                stack.enter_context(wrapped(owner, name, self._timed(part)))
            yield

    def take(self, duration: float, messages: float) -> dict[str, float]:
        """The parts of a step that took `duration` seconds, followed by `messages` seconds for its messages."""
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


class MessageSocket:
    """A socket as the engine process has it, with a reader at the other end."""

    def __init__(self, engine: Engine) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._reader = self._context.socket(zmq.PAIR)
        self._reader.bind("inproc://bench")
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.connect("inproc://bench")
        self._process = EngineProcess(engine, self._socket)

    def tell(self, events: list[GenerationEvent], stats: StepStats) -> None:
        """The engine process's work on messages in one step: looks for new ones, encodes and sends its own."""
        self._socket.poll(0)
        self._process.send(EngineUpdate(events, stats))

    def read(self) -> None:
        """Receives the message, so that the queue stays empty."""
        self._reader.recv()

    def close(self) -> None:
        """Closes both ends."""
        self._socket.close(linger=0)
        self._reader.close(linger=0)
        self._context.term()


def measure_host(engine: Engine, setting: Setting, cycles: int) -> HostTime:
    """Runs full batches until `cycles` times CYCLE steps have been measured."""
    result = HostTime(setting)
    clock, wire = StepClock(engine), MessageSocket(engine)
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


def _run_batch(engine: Engine, clock: StepClock, wire: MessageSocket, result: HostTime, wanted: int) -> None:
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
    """Answers `count` short requests, so that everything that grows with the number of requests has grown."""
    most = engine.config.max_running
    while count > 0:
        _add_batch(engine, Setting(batch=min(count, most), context=8), 1)
        count -= most
        while engine.has_work:
            engine.step()


def _add_batch(engine: Engine, setting: Setting, max_tokens: int) -> list[str]:
    """Adds requests with different prompts, none of which is in the prefix cache. Returns their ids."""
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
