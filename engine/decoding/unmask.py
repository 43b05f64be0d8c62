"""Unmasking rules: which positions of a block a denoising step settles. Pure functions of confidences and state.

A rule gets the softmax probability of the token chosen at every position, and a state, and says which masked positions
take their token and which tokens become masks again. The rule of arXiv 2607.05722, the only one so far, never does the
latter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows
from typing import NamedTuple

import torch

from engine.models.spec import EvenSchedule, ModelSpec
from engine.sequence import Block, Sequence


class DenoisingTraits(NamedTuple):
    """The traits of a family that change a denoising step; see ModelSpec."""

    logit_shift: bool = False
    strict_threshold: bool = False
    even_schedule: EvenSchedule = "remaining"

    @classmethod
    def of(cls, spec: ModelSpec) -> DenoisingTraits:
        """Those of a model."""
        return cls(spec.logit_shift, spec.strict_threshold, spec.even_schedule)


PLAIN = DenoisingTraits()


class UnmaskState(NamedTuple):
    """State of n blocks of r positions, on the device."""

    candidates: torch.Tensor
    """[n, r] bool: masked positions that take part in the step."""
    thresholds: torch.Tensor
    """[n]: confidence from which a position is unmasked; infinity: none is high enough."""
    quotas: torch.Tensor
    """[n] int64: fewest positions to unmask."""
    ranks: torch.Tensor | None = None
    """[n, r]: of the positions that the quota unmasks, the highest come first. None: the confidences."""
    certain: torch.Tensor | None = None
    """[n, r] bool: positions that are unmasked beside the candidates, whatever the rule says. None: there is none."""


class Unmasking(NamedTuple):
    """A rule's result for n blocks of r positions, on the device."""

    unmask: torch.Tensor
    """[n, r] bool: positions that take their chosen token; a subset of the candidates."""
    remask: torch.Tensor | None = None
    """[n, r] bool: positions that become masks again. None: the rule never does that."""


def select_unmask(confidences: torch.Tensor, state: UnmaskState) -> Unmasking:
    """Unmasks positions of a confidence at or above the threshold, and always the `quota` first ones.

    confidences: [n, r]. The first ones are the most confident, unless the state says otherwise; of equals the leftmost.
    """
    candidates = state.candidates
    ranks = confidences if state.ranks is None else state.ranks
    ranked = ranks.masked_fill(~candidates, -math.inf)
    order = ranked.argsort(dim=-1, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank.scatter_(-1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order))
    chosen = (confidences >= state.thresholds[:, None]) | (rank < state.quotas[:, None])
    unmask = candidates & chosen
    return Unmasking(unmask if state.certain is None else unmask | state.certain)


def with_certain(state: UnmaskState, rows: torch.Tensor) -> UnmaskState:
    """The state in which one candidate of each block is unmasked for certain, and counts towards the quota.

    rows: [n] int64, the candidate's position; -1 where there is none.
    """
    positions = torch.arange(state.candidates.shape[1], device=rows.device)
    certain = positions == rows[:, None]
    quotas = (state.quotas - certain.any(dim=1).to(state.quotas.dtype)).clamp(min=0)
    return state._replace(candidates=state.candidates & ~certain, quotas=quotas, certain=certain)


def quota(seq: Sequence, block: Block, schedule: EvenSchedule = "remaining") -> int:
    """Fewest positions this step must unmask for the block to finish within its denoising steps: an even schedule.

    schedule: see ModelSpec.even_schedule.
    """
    steps = seq.request.decoding.max_denoising_steps or len(block)
    if schedule == "block":
        each, more = divmod(len(block), steps)
        return each + (block.steps < more)
    return math.ceil((block.num_masked - block.awaits_anchor) / max(1, steps - block.steps))


def count_settled(masked: Rows[bool], *, revocable: bool) -> int:
    """Leading tokens of a block that are final.

    revocable: the rule may mask tokens again. Then none is final before the whole block is unmasked; else those left of
    the first mask are.
    """
    if True not in masked:
        return len(masked)
    return 0 if revocable else masked.index(True)
