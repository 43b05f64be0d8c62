"""Block diffusion under a grammar as a naive loop, and what a grammar allows, found from its beginning every time.

The rules: the first masked position is bound by the grammar and always settles; a token unmasked behind it is a draft,
which settles if the grammar allows it once all before it has settled. Where there is no draft, or one that is refused,
the only allowed token settles, or the best allowed one of the sixteen likeliest, if its share of what is not refused
among these reaches the threshold. All else from there on is a mask again.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from engine.grammar.state import CompiledGrammar
from tests.reference.denoising.unmasking import by_rule
from tests.reference.loops import Canvas, Run, Task
from tests.reference.sampling import Choice, ranked
from tests.reference.transformer import ReferenceModel

LIKELIEST = 16

Allowed = Callable[[list[int]], set[int]]
"""From the answer so far to the tokens that may stand next."""


def allowed_by(compiled: CompiledGrammar, end_ids: frozenset[int]) -> Allowed:
    """What a grammar allows, end tokens where the text may end."""
    known = compiled.vocabulary.end_token_ids

    def allowed(answer: list[int]) -> set[int]:
        matcher = compiled.matcher.deep_copy()
        assert matcher.consume_tokens(answer), "what has settled is no beginning of a text of the grammar"
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
        text = set(np.flatnonzero(bits).tolist()) - known - end_ids
        return text | (end_ids if matcher.is_accepting() else set())

    return allowed


def structured_diffusion(model: ReferenceModel, task: Task, compiled: CompiledGrammar, *, shared: bool) -> Run:
    """shared: a committing pass carries the first denoising step of the next block."""
    run = Run(model, task)
    allowed = allowed_by(compiled, run.end_ids)
    anchor = run.next_token(task.prompt, allowed([]))
    if run.finished:
        return run
    canvas = Canvas(model.num_cached, min(task.block_length, run.remaining + 1), anchor=anchor)
    while True:
        while not canvas.finished and not run.finished:
            rankings = _denoise(run, canvas, allowed(run.answer))
            run.passes += 1
            _settle(run, canvas, allowed, rankings)
        if run.finished:
            return run
        causal = model.causal(canvas.whole)[-1]
        run.passes += 1
        choice = run.choose(causal, model.num_cached, allowed=allowed(run.answer))
        run.record(choice.margin)
        if shared:
            canvas, rankings = Canvas(model.num_cached, min(task.block_length, run.remaining)), {}
            if len(canvas.tokens) > 1:
                rankings = _denoise(run, canvas, None)
        run.settle(choice.token, choice.logprobs)
        if run.finished:
            return run
        if shared:
            canvas.place(choice.token)
            _settle(run, canvas, allowed, rankings)
        else:
            length = min(task.block_length, run.remaining + 1)
            canvas = Canvas(model.num_cached, length, anchor=choice.token)


Rankings = dict[int, tuple[list[int], np.ndarray]]
"""By position: the likeliest tokens, best first, and the log-probabilities [V] of all."""


def _denoise(run: Run, canvas: Canvas, allowed: set[int] | None) -> Rankings:
    """One denoising step. allowed: at the first masked position; None: that is an anchor still to come."""
    ids = [run.model.mask_id if token is None else token for token in canvas.tokens]
    logits = run.model.bidirectional(ids)
    first, *others = [j for j, token in enumerate(canvas.tokens) if token is None]
    unsettled = [token for token in canvas.tokens[canvas.settled :] if token is not None]
    choices: dict[int, Choice] = {
        j: run.choose(logits[j], canvas.start + j, unsettled, allowed=allowed if j == first else None)
        for j in ([first] if allowed is not None else []) + others
    }
    rankings: Rankings = {}
    for j in others:
        banned, history = run.banned(canvas.start + j), [*run.answer, *unsettled]
        order = ranked(
            logits[j], run.task.sampling, canvas.start + j, banned=banned, prompt=run.task.prompt, generated=history
        )
        rankings[j] = order[:LIKELIEST], choices[j].logprobs
    steps_left = max(1, (run.task.max_denoising_steps or len(canvas.tokens)) - canvas.steps)
    quota = math.ceil(len(choices) / steps_left) - (allowed is not None)
    by_confidence = sorted(others, key=lambda j: -choices[j].logprob)
    taken, closest = by_rule(run.task, {j: choices[j].logprob for j in others})
    run.record(closest)
    for j in [*taken, *by_confidence[:quota], *([first] if allowed is not None else [])]:
        canvas.tokens[j], canvas.logprobs[j] = choices[j].token, choices[j].logprobs
    canvas.steps += 1
    run.denoising_steps += 1
    return rankings


def _settle(run: Run, canvas: Canvas, allowed: Allowed, rankings: Rankings) -> None:
    """Settles what the grammar allows; what is refused becomes a mask again, with all behind it."""
    while canvas.settled < len(canvas.tokens) and not run.finished:
        j = canvas.settled
        may = allowed(run.answer) - run.banned(canvas.start + j)
        token = canvas.tokens[j]
        if token not in may:
            token = _instead(run, may, rankings.get(j))
        if token is None:
            if canvas.tokens[j] is not None:
                canvas.tokens[j:] = [None] * (len(canvas.tokens) - j)
            return
        canvas.tokens[j] = token
        run.settle(token, np.zeros(0))
        canvas.settled += 1


def _instead(run: Run, may: set[int], ranking: tuple[list[int], np.ndarray] | None) -> int | None:
    """The token for a position without a draft that may stand there. ranking: None for one masked before this step."""
    if len(may) == 1:
        return next(iter(may))
    if ranking is None or run.task.threshold is None:
        return None
    order, logprobs = ranking
    best = next((token for token in order if token in may), None)
    left = 1 - sum(math.exp(logprobs[token]) for token in order if token not in may)
    if best is None or left <= 0:
        return None
    share = math.exp(logprobs[best]) / left
    return best if share >= run.task.threshold else None
