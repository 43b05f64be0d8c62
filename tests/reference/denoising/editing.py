"""LLaDA2.1's published loop: block diffusion that replaces unmasked tokens until their block is left.

As the other loops of families whose context is encoded by blocks (tests.reference.block_loops): the whole text runs in
every pass, and tokens that can never be meant are not chosen. An answer is cut at its end once its block is left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tests.reference.block_loops import BlockCanvas, BlockReferenceModel, _text
from tests.reference.loops import Run, Task
from tests.reference.sampling import Choice


@dataclass(frozen=True, kw_only=True)
class EditTask(Task):
    """A request, with the parameters that only this loop has."""

    edit_threshold: float = 0.5
    max_post_steps: int = 16


@dataclass
class EditRun(Run):
    """The answer so far, with the times that an unmasked token was replaced."""

    edited: int = 0
    commits: int = 0
    """Passes that did nothing but store a block."""


def llada2_1(model: BlockReferenceModel, task: EditTask) -> EditRun:
    """Blocks from left to right; tokens settle once the loop leaves their block."""
    run = EditRun(model, task)
    start = len(task.prompt) // model.block_length * model.block_length
    while True:
        canvas = BlockCanvas(start, model.block_length, task.prompt[start:])
        is_stored = _refine(run, task, canvas)
        for token, logprobs in list(zip(canvas.tokens, canvas.logprobs, strict=True))[canvas.known :]:
            assert token is not None
            assert logprobs is not None
            run.settle(token, logprobs)
        if run.finished:
            return run
        if not is_stored:
            run.passes += 1
            run.commits += 1
        start += model.block_length


def _refine(run: EditRun, task: EditTask, canvas: BlockCanvas) -> bool:
    """Passes over a block until it is left. Returns whether the last one saw it as it stays."""
    post = 0
    while True:
        masked = {j for j, token in enumerate(canvas.tokens) if token is None}
        if not masked:
            post += 1
            if post > task.max_post_steps:
                return False
        rows = run.model.block_causal(_text(run, canvas))[canvas.start :]  # type: ignore[attr-defined]
        run.passes += 1
        run.denoising_steps += 1
        choices = {}
        for j in range(canvas.known, len(canvas.tokens)):
            others = [token for i, token in enumerate(canvas.tokens) if token is not None and canvas.known <= i != j]
            choices[j] = run.choose(rows[j], canvas.start + j, others)
            run.record(choices[j].margin)
        edits = _edits(run, task, canvas, choices)
        for j in _unmasked(run, task, {j: choices[j] for j in masked}) | edits:
            canvas.tokens[j], canvas.logprobs[j] = choices[j].token, choices[j].logprobs
        run.edited += len(edits)
        if not masked and not edits:
            return True


def _unmasked(run: Run, task: Task, choices: dict[int, Choice]) -> set[int]:
    """All masks whose confidence is above the threshold, or the best one."""
    if not choices:
        return set()
    best = sorted(choices, key=lambda j: -choices[j].logprob)
    sure = {j for j in best if task.threshold is not None and math.exp(choices[j].logprob) > task.threshold}
    if task.threshold is not None:
        run.record(min(abs(choices[j].logprob - math.log(task.threshold)) for j in best))
    if not sure and len(best) > 1:
        run.record(choices[best[0]].logprob - choices[best[1]].logprob)
    return sure or {best[0]}


def _edits(run: Run, task: EditTask, canvas: BlockCanvas, choices: dict[int, Choice]) -> set[int]:
    """The tokens that another one replaces: one of enough confidence."""
    found = set()
    for j, choice in choices.items():
        if canvas.tokens[j] in (None, choice.token):
            continue
        if task.edit_threshold > 0:
            run.record(abs(choice.logprob - math.log(task.edit_threshold)))
        if math.exp(choice.logprob) > task.edit_threshold:
            found.add(j)
    return found
