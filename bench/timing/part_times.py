"""The time of a pass by parts of the model: projections, attention, norms and others.

The pass runs once as it is, for its time, and once metered, for the shares: every torch call of the decoder, and every
kernel of this project, is timed and added to its part. The time outside all calls is the host's: Python between the
calls, packing, launching.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from bench.timing.pass_times import time_forward, without_graphs, wrapped
from engine.batch import BatchPlan
from engine.engine import Engine
from engine.models.linear.gathered import GatheredLinear

PARTS = ("projections", "attention", "norms", "elementwise", "head", "host")
"""`attention` is its preparation, writing and gathering KV, scores and sums; `elementwise` is embedding, RoPE, SiLU."""

_PART_OF = {"linear": "projections", "addmm": "projections", "addmm_": "projections", "rms_norm": "norms"}


class Timer:
    """Adds up how long calls take. On a GPU a call is launched now and done later: events on its stream tell when."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._calls: defaultdict[str, int] = defaultdict(int)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def time(self, part: str, call: Callable[[], Any]) -> Any:
        """Runs a call and adds its time to a part."""
        if self._on_gpu:
            event: Any = torch.cuda.Event  # untyped
            begin, end = event(enable_timing=True), event(enable_timing=True)
            begin.record()
            result = call()
            end.record()
            self._events.append((part, begin, end))
            return result
        started = time.thread_time()
        result = call()
        self._seconds[part] += time.thread_time() - started
        self._calls[part] += 1
        return result

    def seconds(self) -> dict[str, float]:
        """Seconds by part so far, without what the timing itself takes."""
        if self._events:
            torch.cuda.synchronize()
        for part, begin, end in self._events:
            self._seconds[part] += begin.elapsed_time(end) / 1e3
        self._events = []
        return {
            part: max(0.0, seconds - self._calls[part] * _price_of_timing()) for part, seconds in self._seconds.items()
        }


@cache
def _price_of_timing() -> float:
    """Seconds that a call which does nothing is measured to take."""
    timer = Timer(torch.device("cpu"))
    for _ in range(2000):
        timer.time("nothing", lambda: None)
    return timer._seconds["nothing"] / 2000


class _Meter(TorchFunctionMode):
    """Times every torch call under it."""

    def __init__(self, timer: Timer) -> None:
        super().__init__()
        self._timer = timer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        part = _PART_OF.get(func.__name__, "elementwise")
        return self._timer.time(part, lambda: func(*args, **(kwargs or {})))


def pass_parts(engine: Engine, plan: BatchPlan, repeats: int) -> tuple[float, dict[str, float]]:
    """Seconds of a pass, and of each of its PARTS: both the fastest of `repeats` runs, plain and metered in turn.

    Operation by operation, also where such passes are captured: a captured pass has no parts.
    """
    whole = float("inf")
    parts: dict[str, float] = {}
    with without_graphs(engine):
        for _ in range(repeats):
            time_forward(engine, plan)
            whole = min(whole, time_forward(engine, plan))
            timer = Timer(engine.device)
            with _metering(engine, timer):
                engine.runner.forward(plan)
            for name, seconds in timer.seconds().items():
                parts[name] = min(parts.get(name, seconds), seconds)
    parts = {name: parts.get(name, 0.0) for name in PARTS}
    parts["host"] = max(0.0, whole - sum(parts.values()))
    return whole, parts


@contextmanager
def _metering(engine: Engine, timer: Timer) -> Iterator[None]:
    device_pass = engine.runner.device_pass
    meter: Any = _Meter(timer)  # its base class is untyped

    def as_part(part: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        return lambda method: lambda *args: timer.time(part, lambda: method(*args))

    def whole(part: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def wrap(method: Callable[..., Any]) -> Callable[..., Any]:
            def unmetered(*args: Any) -> Any:
                meter.__exit__(None, None, None)
                try:
                    return timer.time(part, lambda: method(*args))
                finally:
                    meter.__enter__()

            return unmetered

        return wrap

    def metered(method: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any) -> Any:
            _keep_busy(engine.device)
            with meter:
                return method(*args)

        return forward

    with ExitStack() as stack:
        for layer in device_pass.decoder.layers:
            experts = layer.mlp.experts
            for linear in (*layer.linears, *(() if experts is None else experts.linears)):
                if isinstance(linear, GatheredLinear):  # the product and what prepares its rows
                    stack.enter_context(wrapped(linear, "product", whole("projections")))
        stack.enter_context(wrapped(device_pass.attention, "prepare", as_part("attention")))
        stack.enter_context(wrapped(device_pass.attention, "forward", whole("attention")))
        for name in ("rotate", "silu_mul"):  # kernels are no torch calls
            stack.enter_context(wrapped(device_pass.elementwise, name, whole("elementwise")))
        stack.enter_context(wrapped(device_pass.decoder, "forward", metered))
        stack.enter_context(wrapped(device_pass.decoder, "logits", as_part("head")))
        yield


def _keep_busy(device: torch.device) -> None:
    """Gives a GPU tens of milliseconds of other work, so that metered calls queue up and run back to back."""
    if device.type == "cuda":
        matrix = torch.zeros((8192, 8192), dtype=torch.bfloat16, device=device)
        for _ in range(40):
            matrix @ matrix
