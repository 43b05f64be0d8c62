"""Unmasking rules: which positions of a block a denoising step settles. Pure functions of confidences and state.

A rule gets the softmax probability of the token chosen at every position, and a state, and says which masked positions
take their token and which tokens become masks again. The rules so far never do the latter: the threshold of arXiv
2607.05722, and three others by which its authors evaluated, of which `factor` is Fast-dLLM's (arXiv 2505.22618).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Sequence as Rows
from typing import NamedTuple

import torch

from engine.device.transfer import to_device
from engine.events import TokenUnmasking
from engine.models.spec import EvenSchedule, ModelSpec
from engine.request import DecodingParams, Unmasking
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


class UnmaskRules(NamedTuple):
    """The rules of n blocks, and what they need beside the threshold."""

    names: Rows[Unmasking]
    factors: torch.Tensor
    """[n]"""
    bounds: torch.Tensor
    """[n]"""

    @classmethod
    def of(cls, seqs: Rows[Sequence], device: torch.device, dtype: torch.dtype) -> UnmaskRules | None:
        """Those that the requests ask for; None where all have the threshold."""
        params = [seq.request.decoding for seq in seqs]
        if all(own.unmasking == "threshold" for own in params):
            return None
        table = to_device([(own.factor, own.bound) for own in params], device, dtype)
        return cls([own.unmasking for own in params], table[:, 0], table[:, 1])


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
    rules: UnmaskRules | None = None
    """None: the threshold is the rule of all blocks."""
    certain: torch.Tensor | None = None
    """[n, r] bool: positions that are unmasked beside the candidates, whatever the rule says. None: there is none."""


class Unmasked(NamedTuple):
    """A rule's result for n blocks of r positions, on the device."""

    unmask: torch.Tensor
    """[n, r] bool: positions that take their chosen token; a subset of the candidates."""
    remask: torch.Tensor | None = None
    """[n, r] bool: positions that become masks again. None: the rule never does that."""


def select_unmask(confidences: torch.Tensor, state: UnmaskState) -> Unmasked:
    """Unmasks the positions that the rule finds confident enough, and always the `quota` first ones.

    confidences: [n, r]. The first ones are the most confident, unless the state says otherwise; of equals the leftmost.
    """
    candidates = state.candidates
    rank = _rank(confidences if state.ranks is None else state.ranks, candidates)[1]
    chosen = _confident(confidences, state) | (rank < state.quotas[:, None])
    unmask = candidates & chosen
    return Unmasked(unmask if state.certain is None else unmask | state.certain)


def _rank(scores: torch.Tensor, candidates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[n, r] twice: the candidates' scores in descending order, and every position's place in it."""
    ranked, order = scores.masked_fill(~candidates, -math.inf).sort(dim=-1, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank.scatter_(-1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order))
    return ranked, rank


def _confident(confidences: torch.Tensor, state: UnmaskState) -> torch.Tensor:
    """[n, r] bool: the positions that each block's rule finds confident enough, among the candidates."""
    limits, rules = state.thresholds[:, None], state.rules
    confident = confidences >= limits
    if rules is None:
        return confident
    ranked, rank = _rank(confidences, state.candidates)
    factors, bounds = rules.factors[:, None], rules.bounds[:, None]
    taken = {
        "factor": by_factor(ranked, limits, factors),
        "bound": by_bound(ranked, limits, factors, bounds),
        "cumulative": by_cumulative(ranked, limits),
    }
    for name in {*rules.names} - {"threshold"}:
        rows = to_device([rule == name for rule in rules.names], confidences.device)
        confident = torch.where(rows[:, None], taken[name].gather(-1, rank), confident)
    return confident


def by_factor(ranked: torch.Tensor, limits: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """The k most confident positions, as long as each reaches its limit and 1 - factor / (place + 2).

    ranked: [n, r], descending; places count from 0. limits, factors: [n, 1]. Returns [n, r] bool, by place. The more
    positions a step unmasks together, the surer it must be of each (Fast-dLLM).
    """
    enough = (ranked >= limits) & (ranked >= _needed(ranked, factors))
    return enough.to(torch.int64).cumprod(dim=-1).to(torch.bool)


def by_bound(ranked: torch.Tensor, limits: torch.Tensor, factors: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    """Positions that reach their limit, or both the bound and 1 - factor / (place + 2). See `by_factor`."""
    return (ranked >= limits) | ((ranked >= bounds) & (ranked >= _needed(ranked, factors)))


def by_cumulative(ranked: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """The most confident positions, as long as the product of their confidences reaches the limit. See `by_factor`."""
    return ranked.clamp(min=0).cumprod(dim=-1) >= limits


def _needed(ranked: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """[n, r]: by place, the confidence that the factor asks for."""
    places = torch.arange(ranked.shape[-1], device=ranked.device, dtype=ranked.dtype)
    return 1 - factors / (places + 2)


def limit_of(decoding: DecodingParams) -> float:
    """The threshold of a request. Without one nothing is high enough, or, by the rule `factor`, nothing too low."""
    if decoding.threshold is not None:
        return decoding.threshold
    return -math.inf if decoding.unmasking == "factor" else math.inf


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


def note_unmasked(block: Block, old_ids: list[int], was_masked: list[bool]) -> None:
    """Notes the block's latest step at every position that took a token in it. old_ids, was_masked: before the step."""
    for j, masked in enumerate(block.masked):
        if not masked and (was_masked[j] or block.token_ids[j] != old_ids[j]):
            block.unmasked_in[j] = block.steps


def read_unmasking(block: Block, positions: Iterable[int]) -> list[TokenUnmasking]:
    """How the tokens at some positions of the block were unmasked."""
    return [TokenUnmasking(block.index, block.unmasked_in.get(j, 0), block.confidences[j]) for j in positions]


def count_settled(masked: Rows[bool], *, revocable: bool) -> int:
    """Leading tokens of a block that are final.

    revocable: the rule may mask tokens again. Then none is final before the whole block is unmasked; else those left of
    the first mask are.
    """
    if True not in masked:
        return len(masked)
    return 0 if revocable else masked.index(True)
