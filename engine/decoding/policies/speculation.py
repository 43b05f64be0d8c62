"""Linear self-speculation: diffusion drafts a block, a causal pass verifies it (arXiv 2607.05722, section on decoding).

A round is a drafting pass over [anchor, MASK, ...] that fills every mask, and a verifying pass over the filled block.
Row i of the verifying pass chooses the token that AR would choose after the block's first i + 1 tokens, with AR's own
noise, so the accepted prefix and the bonus token are AR's output exactly, at any temperature and block length.
In a shared pass the verification carries an optimistic draft of the next block, kept only if the whole block is
accepted; its position 0 is still a mask, which the bonus token then replaces.
"""

from __future__ import annotations

import math

import torch

from engine.batch import CAUSAL, Phase, Span, StepGroup
from engine.decoding.blocks import block_span, open_block, open_next_block, refined_block
from engine.decoding.contract import DecodingPolicy
from engine.decoding.policies.autoregressive import (
    decode_span,
    exhausted_outcome,
    next_token_choices,
    next_token_outcome,
)
from engine.decoding.results import Choices, HostChoices, StepOutcome, read_logprob, with_logprobs
from engine.decoding.width import VERIFY_STEP, WidthController
from engine.device.transfer import to_device
from engine.sampling.divided import Logits
from engine.sampling.sampler import Sampler
from engine.sequence import Block, Candidates, Sequence

CANDIDATES = 32
"""Tokens looked at, best first, where a grammar refuses a drafted one."""


class SelfSpeculation(DecodingPolicy):
    """Draft and verify with one model."""

    mode = "speculative"

    def __init__(
        self,
        sampler: Sampler,
        mask_token_id: int,
        controller: WidthController,
        shared_verify_below: int = 0,
    ) -> None:
        super().__init__(sampler, mask_token_id)
        self.controller = controller
        self.shared_verify_below = shared_verify_below
        self.num_running = 1

    def begin_pass(self, num_running: int) -> None:
        self.num_running = num_running

    def width(self, seq: Sequence) -> int:
        """Tokens of the next block, anchor included; 1 is plain AR."""
        return seq.request.decoding.block_length

    def plan(self, seq: Sequence) -> list[Span]:
        seq.next_block = None
        block = seq.block
        if block is None:
            width = min(self.width(seq), seq.num_remaining)
            if width < 2:
                return [decode_span(seq)]
            block = open_block(seq, width, self.block_start)
        if any(block.masked):
            return [block_span(seq, block, Phase.DRAFT, self.mask_token_id)]
        fit_draft(seq, block)
        block.truncate(self.controller.verify_length(seq, block, self.num_running))
        verify = Span(seq, Phase.VERIFY, block.start, list(block.token_ids), CAUSAL, num_logits=len(block))
        if self.num_running > self.shared_verify_below:
            return [verify]
        next_width = min(self.width(seq), seq.num_remaining - len(block))
        if next_width < 2 or not self.controller.draft_ahead(seq, block, next_width, self.num_running):
            return [verify]
        next_block = open_next_block(seq, block, next_width)
        draft = block_span(seq, next_block, Phase.DRAFT, self.mask_token_id)
        draft.second = draft.optional = True
        return [verify, draft]

    def decide(self, group: StepGroup, logits: Logits) -> Choices:
        if group.phase is Phase.DRAFT:
            return draft_choices(self.sampler, group, logits)
        if group.phase is Phase.VERIFY:
            return verify_choices(self.sampler, group, logits)
        return next_token_choices(self.sampler, group, logits)

    def conclude(self, span: Span, choices: HostChoices, i: int) -> StepOutcome:
        if span.phase is Phase.DRAFT:
            return draft_outcome(span, choices, i)
        if span.phase is Phase.VERIFY:
            outcome = verify_outcome(span, choices, i)
            self.controller.observe_draft(span.seq, outcome.drafted, outcome.accepted or 0)
            return outcome
        return next_token_outcome(span, choices, i)


class Auto(SelfSpeculation):
    """Self-speculation whose width is chosen anew for every block, from what passes cost and from the
    request's own acceptance.

    Plain AR is one of the widths. The request's block length is the widest that a block may be.
    """

    mode = "auto"

    def width(self, seq: Sequence) -> int:
        return self.controller.draft_width(seq, self.num_running, seq.request.decoding.block_length)


def draft_choices(sampler: Sampler, group: StepGroup, logits: Logits, shift: int = 0) -> Choices:
    """Fills every position of the blocks, with the noise that verification will use. logits: [n, r, V].

    shift: how far behind its own position a row chooses a token for.
    """
    seqs = [span.seq for span in group.spans]
    positions = to_device(group.logit_positions(shift), logits.device)
    chosen = sampler.choose(logits, seqs, positions)
    confidences = chosen.log_probabilities().exp()
    choices = Choices(chosen.token_ids, chosen.finite, confidences)
    bound = [i for i, seq in enumerate(seqs) if seq.grammar is not None]
    if bound:
        index = to_device(bound, logits.device)
        ids, logprobs = sampler.rank(chosen.logits[index], [seqs[i] for i in bound], positions[index], CANDIDATES)
        shape = (*positions.shape, ids.shape[-1])
        choices.top_ids = ids.new_zeros(shape).index_copy(0, index, ids)
        choices.top_logprobs = logprobs.new_zeros(shape).index_copy(0, index, logprobs)
    return choices


def draft_outcome(span: Span, choices: HostChoices, i: int) -> StepOutcome:
    """Writes the draft into the block; nothing settles."""
    block = refined_block(span)
    if block is not None:
        drafted, confidences = choices.token_ids[i], choices.confidences[i]
        for j, masked in enumerate(block.masked):
            if masked:
                block.token_ids[j], block.masked[j], block.confidences[j] = drafted[j], False, confidences[j]
        block.steps += 1
        if span.seq.grammar is not None:
            block.candidates = Candidates(choices.top_ids[i], choices.top_logprobs[i])
            if not span.second:  # else the anchor has not settled yet: `plan` does it
                fit_draft(span.seq, block)
    return StepOutcome(span, finite=choices.finite[i])


def fit_draft(seq: Sequence, block: Block) -> None:
    """Makes a fresh draft a text of the sequence's grammar, as far as its candidates allow. Done once a draft.

    A matter of speed alone: what the grammar refuses is refused again in verification.
    """
    if seq.grammar is None or block.candidates is None:
        return
    (ids, logprobs), block.candidates = block.candidates, None
    fitted = seq.grammar.fit(seq.token_ids, block.token_ids[1:], ids[1:])
    for j, token in enumerate(fitted, 1):
        if token != block.token_ids[j]:
            block.token_ids[j], block.confidences[j] = token, _share(ids[j], logprobs[j], token)
    # No draft after the first that does not fit can be accepted. Lengths stay multiples: sequences share step groups.
    block.truncate(-(-(len(fitted) + 1) // VERIFY_STEP) * VERIFY_STEP)
    for j in range(len(fitted) + 1, len(block)):
        block.confidences[j] = 0.0


def _share(candidates: list[int], logprobs: list[float], token: int) -> float:
    """Probability of a candidate once those before it are out; 1 for a token that is none of them: it was forced."""
    left = 1.0
    for candidate, logprob in zip(candidates, logprobs, strict=True):
        if candidate == token:
            return min(1.0, math.exp(logprob) / max(left, 1e-9))
        left -= math.exp(logprob)
    return 1.0


def verify_choices(sampler: Sampler, group: StepGroup, logits: Logits) -> Choices:
    """AR's own choice after every prefix of the drafts, and how many drafts equal it. logits: [n, r, V]."""
    drafts = to_device([span.token_ids for span in group.spans], logits.device)
    history = drafts.clone()
    history[:, 0] = -1  # the anchor has settled: the sequence's own history holds it
    seqs = [span.seq for span in group.spans]
    positions = to_device(group.logit_positions(1), logits.device)  # row p chooses the token at p + 1
    draft_tokens = [span.token_ids[1:] for span in group.spans]
    chosen = sampler.choose(logits, seqs, positions, unsettled=history, cumulative=True, draft_tokens=draft_tokens)
    matches = drafts[:, 1:] == chosen.token_ids[:, :-1]
    accepted = matches.to(torch.int64).cumprod(dim=1).sum(dim=1)
    return with_logprobs(Choices(chosen.token_ids, chosen.finite, accepted=accepted), chosen, group)


def verify_outcome(span: Span, choices: HostChoices, i: int) -> StepOutcome:
    """Settles the accepted drafts and the bonus token; KV stays valid for the anchor and the accepted drafts."""
    seq = span.seq
    accepted = choices.accepted[i]
    whole = accepted == len(span.token_ids) - 1
    steps = seq.block.steps if seq.block is not None else 0
    tokens = choices.token_ids[i][: accepted + 1]
    if tokens[-1] < 0:  # the grammar leaves nothing to choose there: the last accepted draft becomes the bonus token
        if not accepted:
            seq.block = seq.next_block = None
            return exhausted_outcome(span, choices.finite[i])
        tokens.pop()
        accepted, whole = accepted - 1, False
    logprobs = [read_logprob(seq, choices, i, row) for row in range(accepted + 1)]
    seq.block, seq.next_block = (seq.next_block if whole else None), None
    if seq.block is not None:
        seq.block.place_anchor(tokens[-1])
    return StepOutcome(
        span,
        token_ids=tokens,
        logprobs=[entry for entry in logprobs if entry is not None] or None,
        num_cached=span.start + accepted + 1,
        finite=choices.finite[i],
        drafted=len(span.token_ids) - 1,
        accepted=accepted,
        closed_block_steps=steps,
    )
