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
from engine.models.spec import EvenSchedule
from engine.request import Remasking
from engine.sampling.chosen import Chosen
from engine.sampling.logprobs import widened
from engine.sampling.noise import step_uniforms
from engine.sequence import Block, Sequence

LAST_TIME = 1e-3
"""The point of time at which the last step ends; the first begins at 1."""
ENTROPY_FLOOR = 1e-10
"""Is added to a probability before its logarithm is taken."""

Score = Literal["confidence", "margin", "entropy", "random", "leftmost"]
Schedule = Literal["even", "times"]


class Order(NamedTuple):
    """What is unmasked first, and how many positions a step unmasks."""

    score: Score = "confidence"
    """`confidence`: the chosen token's probability. `margin`: that of the likeliest token less that of the second.
    `entropy`: the distribution's, the lowest first. `random`: a number that belongs to seed, position and step.
    `leftmost`: from left to right."""
    schedule: Schedule = "even"
    """`even`: the same number in every step. `times`: as great a share of the masks as the step has of the time left,
    rounded down; the last step takes all. A threshold, or another rule for confidences, makes it `even`."""
    independent: bool = False
    """`times`: the share is every position's own chance, instead of a number of positions."""


ORDERS: Mapping[Remasking, Order] = {  # `entropy_bound` is none: where it is the sampler, nothing is masked
    "low_confidence": Order(),
    "sequential": Order("leftmost"),
    "random": Order("random"),
    "origin": Order("random", "times", independent=True),
    "maskgit_plus": Order("confidence", "times"),
    "topk_margin": Order("margin", "times"),
    "entropy": Order("entropy", "times"),
}


def scheduled(seq: Sequence, block: Block, even: EvenSchedule = "remaining") -> int:
    """Fewest positions that the block's next step unmasks; it may be none where steps are points of time.

    even: how an even schedule is kept; see ModelSpec.even_schedule.
    """
    decoding = seq.request.decoding
    order = ORDERS[decoding.remasking]
    if order.schedule == "even" or decoding.threshold is not None or decoding.unmasking != "threshold":
        return quota(seq, block, even)
    masked, steps = block.num_masked, decoding.max_denoising_steps or len(block)
    if block.steps >= steps - 1:
        return masked
    share = time_share(block.steps, steps)
    if not order.independent:
        return int(masked * share)
    return int((_uniforms(seq, block, np.arange(block.start, block.end))[block.masked] < share).sum())


def time_share(step: int, steps: int) -> float:
    """The part of the time left that step `step` of `steps` takes: 1 - t[step + 1] / t[step], with times spaced evenly
    from 1 to LAST_TIME."""
    begin, end = (1 + (LAST_TIME - 1) * at / steps for at in (step, step + 1))
    return 1 - end / begin


def skip_idle_steps(seq: Sequence, block: Block) -> None:
    """Goes on to the next step that unmasks anything: a pass for another one would change nothing."""
    while scheduled(seq, block) == 0:
        block.steps += 1


def ranks_of(
    chosen: Chosen, confidences: torch.Tensor, seqs: Rows[Sequence], blocks: Rows[Block], positions: np.ndarray
) -> torch.Tensor | None:
    """By what each sequence's order ranks its rows, the highest first: [n, r]. None: all by confidence.

    chosen: of n sequences of r rows; confidences, positions: [n, r].
    """
    kinds = [ORDERS[seq.request.decoding.remasking].score for seq in seqs]
    if all(kind == "confidence" for kind in kinds):
        return None
    ranks, device = confidences.clone(), confidences.device
    for kind in set(kinds) - {"confidence"}:
        index = [i for i, own in enumerate(kinds) if own == kind]
        rows = to_device(index, device)
        if kind == "leftmost":
            found = torch.arange(ranks.shape[1], 0, -1, dtype=ranks.dtype, device=device).expand(len(index), -1)
        elif kind == "random":
            # 1 - u: those for which a share is greater than u come first.
            drawn = np.stack([_uniforms(seqs[i], blocks[i], positions[i]) for i in index])
            found = to_device(1 - drawn, device)
        else:
            logits = widened(chosen.logits[rows])
            found = margins(logits) if kind == "margin" else certainties(logits)
        ranks[rows] = found.to(ranks.dtype)
    return ranks


def margins(logits: torch.Tensor) -> torch.Tensor:
    """[n, r]: by how much the likeliest token is more probable than the second. logits: [n, r, V]."""
    best = (logits.topk(2, dim=-1).values - logits.logsumexp(dim=-1, keepdim=True)).exp()
    return best[..., 0] - best[..., 1]


def certainties(logits: torch.Tensor) -> torch.Tensor:
    """[n, r]: exp(-entropy), which ranks as the negative entropy does, and lies in (0, 1]. logits: [n, r, V]."""
    probabilities = logits.softmax(dim=-1)
    return (probabilities * (probabilities + ENTROPY_FLOOR).log()).sum(dim=-1).exp()


def _uniforms(seq: Sequence, block: Block, positions: np.ndarray) -> np.ndarray:
    """[r] float64 in [0, 1): of positions [r] at the block's next step."""
    return step_uniforms(seq.request.sampling.seed, positions, block.steps).astype(np.float64)
