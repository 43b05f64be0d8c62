"""Every decoding mode as a naive loop: one sequence, one pass after the other, Python lists, nothing clever.

Written from the published rules alone, on transformers' own model, and sharing no code with the engine: what the two
agree on, they agree on for two reasons. An *anchor* is a token already chosen whose KV is not yet written.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from tests.reference.denoising.unmasking import by_rule
from tests.reference.sampling import GREEDY, Choice, Sampling, choose
from tests.reference.transformer import ReferenceModel


@dataclass(frozen=True, kw_only=True)
class Task:
    """One request."""

    prompt: list[int]
    max_tokens: int = 24
    sampling: Sampling = GREEDY
    block_length: int = 8
    threshold: float | None = 0.9
    max_denoising_steps: int | None = None
    remasking: str = "low_confidence"
    unmasking: str = "threshold"
    factor: float = 2.0
    bound: float = 0.45
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    suffix: list[int] | None = None


@dataclass
class Run:
    """The answer so far, and what it took."""

    model: ReferenceModel
    task: Task
    answer: list[int] = field(default_factory=list)
    """Settled tokens, the end token included."""
    logprobs: list[np.ndarray] = field(default_factory=list)
    """Of each settled token: the log-softmax row [V] it was chosen from."""
    reason: str = ""
    passes: int = 0
    denoising_steps: int = 0
    drafted: int = 0
    accepted: int = 0
    margins: list[tuple[int, float]] = field(default_factory=list)
    """(answer tokens settled before, margin in nats) of every decision."""

    def __post_init__(self) -> None:
        self.model.reset()
        self.end_ids = frozenset(self.task.stop_token_ids)
        self.barred_ids = frozenset(self.model.end_ids) - self.end_ids if self.task.ignore_eos else frozenset()
        self.end_ids |= frozenset(self.model.end_ids) - self.barred_ids

    @property
    def finished(self) -> bool:
        return bool(self.reason)

    @property
    def remaining(self) -> int:
        return self.task.max_tokens - len(self.answer)

    @property
    def visible(self) -> list[int]:
        """The answer as the user gets it: without the end token."""
        return self.answer[:-1] if self.reason == "stop" else self.answer

    def choose(
        self,
        logits: np.ndarray,
        position: int,
        unsettled: Sequence[int] = (),
        end: bool = True,
        allowed: Collection[int] | None = None,
    ) -> Choice:
        """unsettled: further tokens of the history. end: whether end tokens may be chosen once `min_tokens` allow.
        allowed: the only tokens that may be chosen."""
        banned = self.banned(position, end)
        if allowed is not None:
            banned |= set(range(len(logits))) - set(allowed)
        return choose(
            logits,
            self.task.sampling,
            position,
            banned=banned,
            prompt=self.task.prompt,
            generated=[*self.answer, *unsettled],
        )

    def banned(self, position: int, end: bool = True) -> set[int]:
        """Tokens that are never chosen at a position."""
        banned = set(self.model.banned_ids) | self.barred_ids
        if not end or position < len(self.task.prompt) + self.task.sampling.min_tokens:
            banned |= self.end_ids
        return banned

    def record(self, margin: float) -> None:
        self.margins.append((len(self.answer), margin))

    def settle(self, token: int, logprobs: np.ndarray) -> None:
        """Appends to the answer, unless it has ended."""
        if self.finished:
            return
        self.answer.append(token)
        self.logprobs.append(logprobs)
        if token in self.end_ids:
            self.reason = "stop"
        elif not self.remaining:
            self.reason = "length"

    def next_token(self, ids: list[int], allowed: Collection[int] | None = None) -> int:
        """A causal pass over `ids`; its last logit chooses the next token, which settles."""
        choice = self.choose(self.model.causal(ids)[-1], self.model.num_cached, allowed=allowed)
        self.record(choice.margin)
        self.settle(choice.token, choice.logprobs)
        return choice.token

    def closest_call(self, index: int) -> float:
        """Smallest margin of the decisions that the answer's token `index` can depend on."""
        return min((margin for settled, margin in self.margins if settled <= index), default=math.inf)


class Canvas:
    """A block being refined: None where masked."""

    def __init__(self, start: int, length: int, *, anchor: int | None = None, end: bool = True) -> None:
        self.start = start
        self.tokens: list[int | None] = [None] * length
        self.logprobs: list[np.ndarray | None] = [None] * length
        self.settled = 0
        self.steps = 0
        self.end = end
        if anchor is not None:
            self.place(anchor)

    def place(self, anchor: int) -> None:
        """Puts the settled anchor at position 0."""
        self.tokens[0], self.settled = anchor, 1

    @property
    def finished(self) -> bool:
        return None not in self.tokens

    @property
    def whole(self) -> list[int]:
        return [token for token in self.tokens if token is not None]


def autoregressive(model: ReferenceModel, task: Task) -> Run:
    """One token a pass."""
    run = Run(model, task)
    anchor = run.next_token(task.prompt)
    while not run.finished:
        anchor = run.next_token([anchor])
        run.passes += 1
    return run


def diffusion(model: ReferenceModel, task: Task) -> Run:
    """Block diffusion; a finished block is committed by a causal pass of its own."""
    run = Run(model, task)
    anchor = run.next_token(task.prompt)
    while not run.finished:
        canvas = Canvas(model.num_cached, min(task.block_length, run.remaining + 1), anchor=anchor)
        _refine_to_the_end(run, canvas)
        if not run.finished:
            anchor = run.next_token(canvas.whole)
            run.passes += 1
    return run


def diffusion_shared_commit(model: ReferenceModel, task: Task) -> Run:
    """Block diffusion; the committing pass carries the first denoising step of the next canvas.

    That step sees a mask where the anchor would stand: position 0 takes no part, and the anchor is no history yet.
    """
    run = Run(model, task)
    anchor = run.next_token(task.prompt)
    if run.finished:
        return run
    canvas = Canvas(model.num_cached, min(task.block_length, run.remaining + 1), anchor=anchor)
    while True:
        _refine_to_the_end(run, canvas)
        if run.finished:
            return run
        causal = model.causal(canvas.whole)[-1]
        run.passes += 1
        length = min(task.block_length, run.remaining)
        canvas = Canvas(model.num_cached, length)
        choice = run.choose(causal, canvas.start)
        run.record(choice.margin)
        if length > 1:
            _denoise(run, canvas, awaits_anchor=True)
        run.settle(choice.token, choice.logprobs)
        if run.finished:
            return run
        run.denoising_steps += 1
        canvas.place(choice.token)
        _settle_left_of_masks(run, canvas)


def infill(model: ReferenceModel, task: Task) -> Run:
    """One window of masks before a suffix; its length is given, so no end token may stand in it."""
    run = Run(model, task)
    run.end_ids |= model.end_ids
    model.causal(task.prompt)
    _refine_to_the_end(run, Canvas(len(task.prompt), task.max_tokens, end=False))
    return run


def speculative(model: ReferenceModel, task: Task) -> Run:
    """Linear self-speculation: draft every mask in one bidirectional pass, verify in a causal one."""
    run = Run(model, task)
    anchor = run.next_token(task.prompt)
    while not run.finished:
        start = model.num_cached
        width = min(task.block_length, run.remaining)
        block = [anchor]
        if width > 1:
            logits = model.bidirectional([anchor] + [model.mask_id] * (width - 1), drafting=True)
            block += [run.choose(logits[i], start + i).token for i in range(1, width)]
            run.passes += 1
            run.denoising_steps += 1
        verified = model.causal(block)
        run.passes += 1
        chosen: list[Choice] = []
        for i in range(width):
            chosen.append(run.choose(verified[i], start + i + 1, unsettled=block[1 : i + 1]))
            if i + 1 == width or block[i + 1] != chosen[i].token:
                break
        if width > 1:
            run.drafted += width - 1
            run.accepted += len(chosen) - 1
        for choice in chosen:
            run.record(choice.margin)
            run.settle(choice.token, choice.logprobs)
        model.crop(start + len(chosen))
        anchor = chosen[-1].token
    return run


def _refine_to_the_end(run: Run, canvas: Canvas) -> None:
    """Denoising passes until nothing is masked, or the answer has ended with no mask to the left of its end."""
    while not canvas.finished and not run.finished:
        _denoise(run, canvas)
        run.passes += 1
        run.denoising_steps += 1
        _settle_left_of_masks(run, canvas)


def _denoise(run: Run, canvas: Canvas, *, awaits_anchor: bool = False) -> None:
    """One denoising step: unmasks what is confident enough, and as many more as the schedule wants."""
    ids = [run.model.mask_id if token is None else token for token in canvas.tokens]
    logits = run.model.bidirectional(ids + (run.task.suffix or []))
    unsettled = [token for token in canvas.tokens[canvas.settled :] if token is not None]
    choices = {
        j: run.choose(logits[j], canvas.start + j, unsettled, canvas.end)
        for j, token in enumerate(canvas.tokens)
        if token is None and not (awaits_anchor and j == 0)
    }
    steps_left = max(1, (run.task.max_denoising_steps or len(canvas.tokens)) - canvas.steps)
    quota = math.ceil(len(choices) / steps_left)
    by_confidence = sorted(choices, key=lambda j: -choices[j].logprob)
    confident, closest = by_rule(run.task, {j: choice.logprob for j, choice in choices.items()})
    unmasked = confident | set(by_confidence[:quota])
    run.record(closest)
    _record_unmasking(run, choices, by_confidence, quota, confident)
    for j in unmasked:
        canvas.tokens[j], canvas.logprobs[j] = choices[j].token, choices[j].logprobs
    canvas.steps += 1


def _record_unmasking(
    run: Run, choices: dict[int, Choice], by_confidence: list[int], quota: int, confident: set[int]
) -> None:
    """How close this step came to choosing other tokens or other positions."""
    for choice in choices.values():
        run.record(choice.margin)
    if quota < len(choices) and by_confidence[quota] not in confident:
        run.record(choices[by_confidence[quota - 1]].logprob - choices[by_confidence[quota]].logprob)


def _settle_left_of_masks(run: Run, canvas: Canvas) -> None:
    while canvas.settled < len(canvas.tokens):
        token, logprobs = canvas.tokens[canvas.settled], canvas.logprobs[canvas.settled]
        if token is None or logprobs is None:
            return
        run.settle(token, logprobs)
        canvas.settled += 1
