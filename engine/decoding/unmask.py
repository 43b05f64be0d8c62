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

from engine.sequence import Block, Sequence


class UnmaskState(NamedTuple):
    """State of n blocks of r positions, on the device."""

    candidates: torch.Tensor
    """[n, r] bool: masked positions that take part in the step."""
    thresholds: torch.Tensor
    """[n]: confidence from which a position is unmasked; infinity: none is high enough."""
    quotas: torch.Tensor
    """[n] int64: fewest positions to unmask."""
    certain: torch.Tensor | None = None
    """[n, r] bool: positions that are unmasked beside these, whatever the rule says. None: there is none."""


class Unmasking(NamedTuple):
    """A rule's result for n blocks of r positions, on the device."""

    unmask: torch.Tensor
    """[n, r] bool: positions that take their chosen token; a subset of the candidates."""
    remask: torch.Tensor | None = None
    """[n, r] bool: positions that become masks again. None: the rule never does that."""


def select_unmask(confidences: torch.Tensor, state: UnmaskState) -> Unmasking:
    """Unmasks positions of a confidence at or above the threshold, and always the `quota` most confident ones.

    confidences: [n, r]. Of equal confidences the leftmost wins.
    """
    candidates = state.candidates
    ranked = confidences.masked_fill(~candidates, -1.0)
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


def quota(seq: Sequence, block: Block) -> int:
    """Fewest positions this step must unmask for the block to finish within its denoising steps: an even schedule."""
    steps = seq.request.decoding.max_denoising_steps or len(block)
    return math.ceil((block.num_masked - block.awaits_anchor) / max(1, steps - block.steps))


def count_settled(masked: Rows[bool], *, revocable: bool) -> int:
    """Leading tokens of a block that are final.

    revocable: the rule may mask tokens again. Then none is final before the whole block is unmasked; else those left of
    the first mask are.
    """
    if True not in masked:
        return len(masked)
    return 0 if revocable else masked.index(True)
