"""Block diffusion with confidence-threshold unmasking or an even schedule (Nemotron-Labs-Diffusion, arXiv 2607.05722).

A block starts as [anchor, MASK, ...]. Denoising passes see the whole block both ways; each unmasks the positions it is
confident of. A finished block is encoded once more, causally: that commit pass writes its KV, and its last logit is
the next anchor. With `shared_commit` that pass also runs the first denoising step of the next block, whose position 0
is still a mask and takes no part in the step: the anchor that the same pass chooses replaces it.
"""

from __future__ import annotations

import math

import torch

from engine.batch import CAUSAL, Phase, Span, StepGroup
from engine.decoding.blocks import block_span, open_block, open_next_block, refined_block
from engine.decoding.bound_blocks import BoundBlock, add_candidates, bound_row
from engine.decoding.causal_steps import (
    begin_next_block,
    exhausted_outcome,
    next_token_choices,
    next_token_outcome,
)
from engine.decoding.contract import DecodingPolicy
from engine.decoding.orders import ranks_of, scheduled
from engine.decoding.results import Choices, HostChoices, StepOutcome, read_logprob, with_logprobs
from engine.decoding.unmask import (
    PLAIN,
    DenoisingTraits,
    UnmaskRules,
    UnmaskState,
    count_settled,
    limit_of,
    note_unmasked,
    read_unmasking,
    select_unmask,
    with_certain,
)
from engine.device.transfer import to_device
from engine.models.spec import BlockStart
from engine.sampling.divided import Logits
from engine.sampling.sampler import Sampler
from engine.sequence import Block, Sequence


class Diffusion(DecodingPolicy):
    """Parallel refinement of one block after the other."""

    mode = "diffusion"

    def __init__(
        self, sampler: Sampler, mask_token_id: int, *, block_start: BlockStart = "anchor", shared_commit: bool = False
    ) -> None:
        super().__init__(sampler, mask_token_id)
        self.block_start = block_start
        self.shared_commit = shared_commit

    def plan(self, seq: Sequence) -> list[Span]:
        seq.next_block = None
        anchored = self.block_start == "anchor"
        block = seq.block
        if block is None:
            length = min(seq.request.decoding.block_length, seq.num_remaining + anchored)
            block = open_block(seq, length, self.block_start)
        if any(block.masked):
            return [block_span(seq, block, Phase.DENOISE, self.mask_token_id)]
        commit = Span(
            seq, Phase.COMMIT, block.start, list(block.token_ids), CAUSAL,
            num_logits=int(anchored), logit_start=len(block) - 1,
        )  # fmt: skip
        if not self.shared_commit or not anchored or seq.num_remaining < 2:
            return [commit]
        next_block = open_next_block(seq, block, min(seq.request.decoding.block_length, seq.num_remaining))
        denoise = block_span(seq, next_block, Phase.DENOISE, self.mask_token_id)
        denoise.second = True
        return [commit, denoise]

    def decide(self, group: StepGroup, logits: Logits) -> Choices:
        if group.phase is Phase.COMMIT:
            return next_token_choices(self.sampler, group, logits)
        return denoise_choices(self.sampler, group, logits)

    def conclude(self, span: Span, choices: HostChoices, i: int) -> StepOutcome:
        if span.phase is Phase.DENOISE:
            return denoise_outcome(span, choices, i)
        seq = span.seq
        outcome = next_token_outcome(span, choices, i) if span.num_logits else StepOutcome(span, num_cached=span.end)
        if seq.block is not None:
            outcome.closed_block_steps = seq.block.steps
        begin_next_block(seq, outcome)
        return outcome


def denoise_choices(
    sampler: Sampler,
    group: StepGroup,
    logits: Logits,
    traits: DenoisingTraits = PLAIN,
    *,
    reconsiders: bool = False,
) -> Choices:
    """Chooses a token at every masked position that a row of logits is for, and decides which of them settle.

    logits: [n, r, V]. reconsiders: what is chosen at unmasked positions matters, too.
    """
    device = logits.device
    blocks = [block_of(span) for span in group.spans]
    seqs = [span.seq for span in group.spans]
    first = [_first_chosen(span, block, traits) for span, block in zip(group.spans, blocks, strict=True)]
    rows = group.num_logits
    masked = to_device([block.masked[j : j + rows] for j, block in zip(first, blocks, strict=True)], device)
    unsettled = to_device([unsettled_ids(block) for block in blocks], device)
    places = group.logit_positions(int(traits.logit_shift))
    positions = to_device(places, device)
    bound = [bound_row(seq, block, j) for seq, block, j in zip(seqs, blocks, first, strict=True)]
    chosen = sampler.choose(logits, seqs, positions, unsettled=unsettled, without_own=reconsiders, grammar_rows=bound)
    confidences = chosen.log_probabilities().exp()
    masked[:, 0] &= ~to_device([block.awaits_anchor for block in blocks], device)
    quotas = [scheduled(seq, block, traits.even_schedule) for seq, block in zip(seqs, blocks, strict=True)]
    limits = to_device([limit_of(seq.request.decoding) for seq in seqs], device, confidences.dtype)
    if traits.strict_threshold:  # the next number is the least that is greater
        limits = limits.nextafter(torch.full_like(limits, math.inf))
    ranks = ranks_of(chosen, confidences, seqs, blocks, places)
    rules = UnmaskRules.of(seqs, device, confidences.dtype)
    state = UnmaskState(masked, limits, to_device(quotas, device), ranks, rules)
    if any(row is not None for row in bound):
        state = with_certain(state, to_device([-1 if row is None else row for row in bound], device))
    unmask, remask = select_unmask(confidences, state)
    choices = Choices(chosen.token_ids, chosen.finite, confidences, unmask, remask)
    add_candidates(choices, sampler, chosen, seqs, positions)
    return with_logprobs(choices, chosen, group)


def block_of(span: Span) -> Block:
    """The block that a span refines, while choices are made. Only `conclude` may find that it has been rejected."""
    block = refined_block(span)
    if block is None:
        raise RuntimeError("a denoising span has its block until the choices of its pass are concluded")
    return block


def _first_chosen(span: Span, block: Block, traits: DenoisingTraits) -> int:
    """The position in the block that the span's first row of logits chooses a token for."""
    return span.start + span.logit_start + traits.logit_shift - block.start


def unsettled_ids(block: Block) -> list[int]:
    """Unmasked tokens of the block that the sequence's own history does not hold yet, -1 elsewhere."""
    return [
        -1 if masked or j < block.num_settled else token
        for j, (token, masked) in enumerate(zip(block.token_ids, block.masked, strict=True))
    ]


def denoise_outcome(span: Span, choices: HostChoices, i: int, traits: DenoisingTraits = PLAIN) -> StepOutcome:
    """Writes what was unmasked into the block; the leading tokens that are final by now have settled."""
    block = refined_block(span)
    if block is None or not choices.finite[i]:
        return StepOutcome(span, finite=choices.finite[i])
    tokens, confidences = choices.token_ids[i], choices.confidences[i]
    first = _first_chosen(span, block, traits)
    traced = (list(block.token_ids), list(block.masked)) if span.seq.request.trace_unmasking else None
    bound = BoundBlock.of(span.seq, block, first, choices, i)
    if bound is not None and bound.is_exhausted(tokens):
        return exhausted_outcome(span, finite=True)
    for row, unmask in enumerate(choices.unmask[i]):
        if unmask:
            j = first + row
            block.token_ids[j], block.masked[j], block.confidences[j] = tokens[row], False, confidences[row]
            logprob = read_logprob(span.seq, choices, i, row)
            if logprob is not None:
                block.logprobs[j] = logprob
    revocable = bool(choices.remask)
    if revocable:
        for j, remask in enumerate(choices.remask[i], first):
            if remask:
                block.masked[j], block.confidences[j] = True, None
    block.steps += 1
    settled = count_settled(block.masked, revocable=revocable) if bound is None else bound.settle()
    new = range(block.num_settled, settled)
    block.num_settled = max(settled, block.num_settled)
    if traced is not None:
        note_unmasked(block, *traced)
    wants_logprobs = span.seq.request.sampling.logprobs is not None
    return StepOutcome(
        span,
        token_ids=[block.token_ids[j] for j in new],
        logprobs=[block.logprobs.pop(j) for j in new] if wants_logprobs and new else None,
        unmasking=None if traced is None else read_unmasking(block, new),
    )
