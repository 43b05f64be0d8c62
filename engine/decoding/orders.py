"""Orders of unmasking: by what a denoising step ranks the masked positions of a block, and how many it unmasks.

The names are those of the published loops. `low_confidence` and `random` are LLaDA's (arXiv 2502.09992), which unmask
the same number in every step; `origin`, `maskgit_plus`, `topk_margin` and `entropy` are Dream's (arXiv 2508.15487),
whose steps are points of time.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Rows
from typing import Literal, NamedTuple

import numpy as np
import torch

from engine.decoding.unmask import quota
from engine.device.transfer import to_device
from engine.request import Remasking
from engine.sampling.logprobs import widened
from engine.sampling.noise import step_uniforms
from engine.sampling.sampler import Chosen
from engine.sequence import Block, Sequence

LAST_TIME = 1e-3
"""The point of time at which the last step ends; the first begins at 1."""
ENTROPY_FLOOR = 1e-10
"""Is added to a probability before its logarithm is taken."""

Score = Literal["confidence", "margin", "entropy", "random"]
Schedule = Literal["even", "times"]


class Order(NamedTuple):
    """What is unmasked first, and how many positions a step unmasks."""

    score: Score = "confidence"
    """`confidence`: the chosen token's probability. `margin`: that of the likeliest token less that of the second.
    `entropy`: the distribution's, the lowest first. `random`: a number that belongs to seed, position and step."""
    schedule: Schedule = "even"
    """`even`: the same number in every step. `times`: as great a share of the masks as the step's stretch of time is of the
    time that is left, rounded down; the last step takes all. A threshold makes it `even`."""
    independent: bool = False
    """`times`: the share is every position's own chance, instead of a number of positions."""


ORDERS: Mapping[Remasking, Order] = {
    "low_confidence": Order(),
    "random": Order("random"),
    "origin": Order("random", "times", independent=True),
    "maskgit_plus": Order("confidence", "times"),
    "topk_margin": Order("margin", "times"),
    "entropy": Order("entropy", "times"),
}


def scheduled(seq: Sequence, block: Block) -> int:
    """Fewest positions that the block's next step unmasks; it may be none where steps are points of time."""
    order = ORDERS[seq.request.decoding.remasking]
    if order.schedule == "even" or seq.request.decoding.threshold is not None:
        return quota(seq, block)
    masked, steps = block.num_masked, seq.request.decoding.max_denoising_steps or len(block)
    if block.steps >= steps - 1:
        return masked
    share = time_share(block.steps, steps)
    if not order.independent:
        return int(masked * share)
    return int((_uniforms(seq, block)[block.masked] < share).sum())


def time_share(step: int, steps: int) -> float:
    """The part of the time left that step `step` of `steps` takes: 1 - t[step + 1] / t[step], with times spaced evenly
    from 1 to LAST_TIME."""
    begin, end = (1 + (LAST_TIME - 1) * at / steps for at in (step, step + 1))
    return 1 - end / begin


def skip_idle_steps(seq: Sequence, block: Block) -> None:
    """Goes on to the next step that unmasks anything: a pass for another one would change nothing."""
    while scheduled(seq, block) == 0:
        block.steps += 1


def scores_of(chosen: Chosen, confidences: torch.Tensor, seqs: Rows[Sequence], blocks: Rows[Block]) -> torch.Tensor:
    """By what each sequence's order ranks its positions, the highest first: [n, r], each in [0, 1].

    chosen: of n blocks of r positions; confidences: [n, r].
    """
    kinds = [ORDERS[seq.request.decoding.remasking].score for seq in seqs]
    if all(kind == "confidence" for kind in kinds):
        return confidences
    scores, device = confidences.clone(), confidences.device
    for kind in ("margin", "entropy", "random"):
        index = [i for i, own in enumerate(kinds) if own == kind]
        if not index:
            continue
        if kind == "random":
            # 1 - u: those for which a share is greater than u rank first.
            drawn = [(1 - _uniforms(seqs[i], blocks[i])).tolist() for i in index]
            ranked = to_device(drawn, device, scores.dtype)
        else:
            rows = to_device(index, device)
            logits = widened(chosen.logits[rows])
            ranked = margins(logits) if kind == "margin" else certainties(logits)
        scores[to_device(index, device)] = ranked.to(scores.dtype)
    return scores


def margins(logits: torch.Tensor) -> torch.Tensor:
    """[n, r]: by how much the likeliest token is more probable than the second. logits: [n, r, V]."""
    best = (logits.topk(2, dim=-1).values - logits.logsumexp(dim=-1, keepdim=True)).exp()
    return best[..., 0] - best[..., 1]


def certainties(logits: torch.Tensor) -> torch.Tensor:
    """[n, r]: exp(-entropy), which ranks as the negative entropy does, and lies in (0, 1]. logits: [n, r, V]."""
    probabilities = logits.softmax(dim=-1)
    return (probabilities * (probabilities + ENTROPY_FLOOR).log()).sum(dim=-1).exp()


def _uniforms(seq: Sequence, block: Block) -> np.ndarray:
    """[r] float64 in [0, 1): the block's positions at its next step."""
    positions = np.arange(block.start, block.end, dtype=np.int64)
    return step_uniforms(seq.request.sampling.seed, positions, block.steps).astype(np.float64)
