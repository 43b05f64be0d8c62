"""Passes of one kind: their plans and their times."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from engine.batch import CAUSAL, BatchPlan, KVLimits, Phase, Span, StepGroup
from engine.device.devices import synchronise
from engine.engine import Engine
from engine.measure.clock import clock_for
from engine.measure.roofline import WorkCounter
from engine.sequence import Sequence


@dataclass(frozen=True)
class PassKind:
    """A pass of `batch` equal spans."""

    phase: Phase
    width: int
    """Query tokens a sequence."""
    batch: int
    context: int
    """KV positions a sequence has cached before the pass."""

    def fits(self, engine: Engine) -> bool:
        """Whether the engine could be asked to run it."""
        info, config = engine.info, engine.config
        pages = -(-(self.context + self.width) // info.page_size)
        return (
            self.batch <= config.max_running
            and self.batch * self.width <= config.max_batch_tokens
            and self.context + self.width <= info.max_model_len
            and self.batch * pages <= info.num_pages
        )


def make_plan(engine: Engine, kind: PassKind) -> BatchPlan:
    """A plan over made-up sequences, no page shared. Running it overwrites pages that requests may use later."""
    info = engine.info
    num_pages = -(-(kind.context + kind.width) // info.page_size)
    refined = kind.phase in (Phase.DENOISE, Phase.DRAFT)
    num_logits = kind.width if refined or kind.phase is Phase.VERIFY else 1
    spans = []
    for row in range(kind.batch):
        seq = Sequence.placeholder(row, list(range(row * num_pages, (row + 1) * num_pages)))
        ids = [(31 * row + 7 * i) % info.vocab_size for i in range(kind.width)]
        spans.append(
            Span(
                seq, kind.phase, kind.context, ids,
                KVLimits.up_to(kind.context + kind.width) if refined else CAUSAL,
                num_logits=num_logits, logit_start=kind.width - num_logits,
            )
        )  # fmt: skip
    return BatchPlan([StepGroup("", kind.phase, num_logits, spans)])


def counter_of(engine: Engine) -> WorkCounter:
    """Counts the work of the engine's passes."""
    return WorkCounter(engine.runner.decoder, engine.runner.pool.dtype.itemsize)


def time_passes(engine: Engine, kinds: list[PassKind], repeats: int) -> list[list[float]]:
    """Seconds of every kind's passes, `repeats` each. Interleaved: every kind once, then every kind again.

    Before each counted pass the same one runs uncounted, so that caches hold what they hold while decoding goes on.
    """
    seconds: list[list[float]] = [[] for _ in kinds]
    for _ in range(repeats):
        for kind, times in zip(kinds, seconds, strict=True):
            plan = make_plan(engine, kind)
            time_forward(engine, plan)
            times.append(time_forward(engine, plan))
    return seconds


def time_forward(engine: Engine, plan: BatchPlan) -> float:
    """Seconds of one pass: packing, attention's preparation, the model."""
    now = clock_for(engine.device).now
    started = now()
    engine.runner.forward(plan)
    synchronise(engine.device)
    return now() - started


def typical(values: list[float], cycle: int) -> float:
    """Mean over the places of a cycle of `cycle` steps, of the median of the steps at that place.

    Blind to outliers, as a median is, but not to what every sequence does once a cycle.
    """
    return statistics.fmean(statistics.median(values[place::cycle]) for place in range(min(cycle, len(values))))


@contextmanager
def without_graphs(engine: Engine) -> Iterator[None]:
    """Until the context ends every pass runs operation by operation."""
    device_pass = engine.runner.device_pass
    graphs, device_pass.graphs = device_pass.graphs, None
    try:
        yield
    finally:
        device_pass.graphs = graphs


@contextmanager
def wrapped(owner: object, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Replaces a method of one object by a wrapper around it, until the context ends."""
    setattr(owner, name, wrap(getattr(owner, name)))
    try:
        yield
    finally:
        delattr(owner, name)
