"""Linear self-speculation: diffusion drafts a block, a causal pass verifies it (arXiv 2607.05722, section on decoding).

A round is a drafting pass over [anchor, MASK, ...] that fills every mask, and a verifying pass over the filled block.
The accepted prefix and the bonus token are AR's output exactly, at any temperature and block length (causal_steps.py).
In a shared pass the verification carries an optimistic draft of the next block, kept only if the whole block is
accepted; its position 0 is still a mask, which the bonus token then replaces.
"""

from __future__ import annotations

import math

from engine.batch import CAUSAL, Phase, Span, StepGroup
from engine.decoding.blocks import block_span, open_block, open_next_block, refined_block
from engine.decoding.causal_steps import (
    decode_span,
    next_token_choices,
    next_token_outcome,
    verify_choices,
    verify_outcome,
)
from engine.decoding.contract import DecodingPolicy
from engine.decoding.lookup import TextLookup
from engine.decoding.results import Choices, HostChoices, StepOutcome
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
        lookup: TextLookup,
        shared_verify_below: int = 0,
    ) -> None:
        super().__init__(sampler, mask_token_id)
        self.controller: WidthController = lookup.controller
        self.lookup = lookup
        self.shared_verify_below = shared_verify_below
        self.num_running = 1

    def begin(self, seq: Sequence) -> None:
        self.lookup.begin(seq)

    def begin_pass(self, num_running: int) -> None:
        self.num_running = num_running

    def width(self, seq: Sequence) -> int:
        """Tokens of the next block, anchor included; 1 is plain AR."""
        return seq.request.decoding.block_length

    def own_rate(self, seq: Sequence) -> float:
        """Tokens a second that the sequence may expect of its own drafts."""
        return self.controller.round_rate(seq, self.num_running, self.width(seq))

    def plan(self, seq: Sequence) -> list[Span]:
        seq.next_block = None
        block = seq.block
        if block is None:
            if seq.known_texts:
                repeating = self.lookup.span(seq, self.num_running, lambda: self.own_rate(seq))
                if repeating is not None:
                    return [repeating]
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
            own = span.seq.block is not None
            outcome = verify_outcome(span, choices, i)
            if own:
                self.controller.observe_draft(span.seq, outcome.drafted, outcome.accepted or 0)
            return outcome
        return next_token_outcome(span, choices, i)


class Auto(SelfSpeculation):
    """Self-speculation whose width is chosen anew for every block, from what passes cost and from the
    request's own acceptance.

    Plain AR is one of the widths. The request's block length is the widest that a block may be. Where the answer seems
    to repeat its prompt, drafts are taken from there.
    """

    mode = "auto"

    def begin(self, seq: Sequence) -> None:
        self.lookup.begin(seq, prompt=True)

    def own_rate(self, seq: Sequence) -> float:
        return self.controller.best_rate(seq, self.num_running, seq.request.decoding.block_length)

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
