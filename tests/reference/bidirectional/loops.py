"""LLaDA's and Dream's loops, naively: Python lists, one sequence, the whole text in every pass.

Written from the published rules alone, and sharing no code with the engine. A loop runs to its end as the published
ones do; the answer is cut afterwards, at its first end token or at `max_tokens`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import DynamicCache

from tests.reference.bidirectional.model import WholeModel
from tests.reference.loops import Run, Task
from tests.reference.noise import step_uniform
from tests.reference.sampling import Choice

DREAM_ORDERS = ("origin", "maskgit_plus", "topk_margin", "entropy")


@dataclass(frozen=True, kw_only=True)
class WholeTask(Task):
    """One request. block_length 0: the whole answer is one block."""

    remasking: str = "low_confidence"
    threshold: float | None = None


class Text:
    """The whole text: None where masked."""

    def __init__(self, run: Run) -> None:
        task = run.task
        gap = task.suffix is not None
        self.length = task.max_tokens if gap or task.block_length == 0 else task.block_length
        self.blocks = math.ceil(task.max_tokens / self.length)
        self.start = len(task.prompt)
        self.tokens: list[int | None] = [*task.prompt, *[None] * (self.blocks * self.length), *(task.suffix or [])]
        self.logprobs: dict[int, np.ndarray] = {}
        self.settled = self.start

    def ids(self, mask: int) -> list[int]:
        return [mask if token is None else token for token in self.tokens]

    def settle(self, run: Run) -> None:
        """What has no mask before it."""
        end = self.start + self.blocks * self.length
        while self.settled < end and self.tokens[self.settled] is not None:
            run.settle(self.tokens[self.settled], self.logprobs[self.settled])
            self.settled += 1


def whole(model: WholeModel, task: WholeTask, cache: str = "none") -> Run:
    """The published loop of the model's family. cache: none, prefix or dual, as in Fast-dLLM."""
    run = Run(model, task)
    if task.suffix is not None:
        run.end_ids |= model.end_ids
    text = Text(run)
    for number in range(text.blocks):
        first = text.start + number * text.length
        _refine_block(run, text, first, first + text.length, cache)
    # What was settled on the way is what the finished text says.
    answer = text.tokens[text.start : text.start + task.max_tokens]
    ends = [i for i, token in enumerate(answer) if token in run.end_ids and task.suffix is None]
    assert run.answer == (answer[: ends[0] + 1] if ends else answer)
    return run


def _refine_block(run: Run, text: Text, first: int, end: int, cache: str) -> None:
    """Passes until the block [first, end) has no mask."""
    model, task = run.model, run.task
    count = end - first
    steps = task.max_denoising_steps or count
    frozen, start, stop = None, 0, len(text.tokens)
    places = list(range(first, end))
    step = 0
    if cache != "none" and model.shift:
        # The first token's row is the position before the block: it is chosen in the pass that fills the cache.
        logits = model.logits(text.ids(model.mask_id))
        frozen, start, stop = _freeze(model, text, first, end, cache)
        choices = _choices(run, text, places[:1], {first: logits[first - 1]})
        _take(run, text, choices, {first}, choices, [first])
        step = 1 if task.max_denoising_steps is not None else 0
        if task.max_denoising_steps is None:
            steps = count - 1
        places = places[1:]
    while any(text.tokens[p] is None for p in places):
        masked = [p for p in places if text.tokens[p] is None]
        quota = _quota(run, masked, step, steps)
        if quota == 0:  # a step that takes nothing: the next one sees the same text
            step += 1
            continue
        logits = model.logits(text.ids(model.mask_id)[start:stop], start, frozen)
        rows = {p: logits[p - model.shift - start] for p in masked}
        if cache != "none" and frozen is None:
            frozen, start, stop = _freeze(model, text, first, end, cache)
        choices = _choices(run, text, masked, rows)
        scores = {p: _score(task, choices[p], p, step) for p in masked}
        ranked = sorted(masked, key=lambda p: -scores[p])
        chosen = set(ranked[:quota])
        if task.threshold is not None:
            chosen |= {p for p in masked if math.exp(choices[p].logprob) >= task.threshold}
        _take(run, text, choices, chosen, scores, ranked)
        step += 1


def _freeze(model: WholeModel, text: Text, first: int, end: int, cache: str) -> tuple[DynamicCache, int, int]:
    """(what stays from the last pass, and the part of the text that runs from now on)."""
    size = len(text.tokens)
    if cache == "prefix":
        return model.freeze(list(range(first))), first, size
    return model.freeze([*range(first), *range(end, size)]), first, end


def _quota(run: Run, masked: list[int], step: int, steps: int) -> int:
    task = run.task
    if task.remasking in DREAM_ORDERS and task.threshold is None:
        if step >= steps - 1:
            return len(masked)
        times = np.linspace(1, 1e-3, steps + 1)
        share = 1 - times[step + 1] / times[step]
        if task.remasking == "origin":
            return sum(step_uniform(task.sampling.seed, p, step) < share for p in masked)
        return int(len(masked) * share)
    return math.ceil(len(masked) / max(1, steps - step))


def _choices(run: Run, text: Text, places: list[int], rows: dict[int, np.ndarray]) -> dict[int, Choice]:
    answer_end = text.start + text.blocks * text.length
    unsettled = [token for token in text.tokens[text.settled : answer_end] if token is not None]
    end = run.task.suffix is None
    return {p: run.choose(rows[p], p, unsettled, end) for p in places}


def _score(task: WholeTask, choice: Choice, place: int, step: int) -> float:
    """What the order ranks by, the highest first."""
    probabilities = np.exp(choice.logprobs)
    if task.remasking in ("random", "origin"):
        return 1 - step_uniform(task.sampling.seed, place, step)
    if task.remasking == "topk_margin":
        second, best = np.partition(probabilities, -2)[-2:]
        return float(best - second)
    if task.remasking == "entropy":
        return float((probabilities * np.log(probabilities + 1e-10)).sum())
    return math.exp(choice.logprob)


def _take(
    run: Run, text: Text, choices: dict[int, Choice], chosen: set[int], scores: dict[int, Any], ranked: list[int]
) -> None:
    """Writes what a step has chosen, and how close it came to choosing otherwise."""
    for choice in choices.values():
        run.record(choice.margin)
        if run.task.threshold is not None:
            run.record(abs(choice.logprob - math.log(run.task.threshold)))
    if len(chosen) < len(ranked) and run.task.threshold is None and run.task.remasking not in ("random", "origin"):
        run.record(abs(scores[ranked[len(chosen) - 1]] - scores[ranked[len(chosen)]]))
    for p in chosen:
        text.tokens[p], text.logprobs[p] = choices[p].token, choices[p].logprobs
    if not run.finished:
        run.passes += 1
        run.denoising_steps += 1
    text.settle(run)
