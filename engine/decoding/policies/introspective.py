"""Speculation by causal masks (I-DLM, arXiv 2604.11035): one pass verifies what was drafted and drafts what follows.

The model sees causally throughout, masks too, and every row of logits chooses the token after its own. A pass runs
[anchor, drafts, MASK, ...] as two causal spans. The rows of the first choose what AR would choose after each draft: the
matching ones settle, and one more token, the next anchor. The masks stand where that token and those after it will be,
so their rows draft what follows it; where a draft was rejected they have seen it, and count for nothing. Then, and at
the beginning, a pass has only the anchor and masks.

Published code accepts a draft with probability min(1, p / q). Here drafts and verification share positional noise, so
the tokens are AR's own at any temperature.
"""

from __future__ import annotations

from engine.batch import CAUSAL, Phase, Span, StepGroup
from engine.decoding.blocks import refined_block
from engine.decoding.causal_steps import begin_next_block, decode_span, next_token_outcome
from engine.decoding.policies.speculation import SelfSpeculation, draft_choices, fit_draft
from engine.decoding.results import Choices, HostChoices, StepOutcome
from engine.sampling.divided import Logits
from engine.sequence import Block, Candidates, Sequence


class IntrospectiveSpeculation(SelfSpeculation):
    """Verifies and drafts in one pass, with one model."""

    mode = "speculative"

    def plan(self, seq: Sequence) -> list[Span]:
        seq.next_block, block = None, seq.block
        if block is None:
            if seq.known_texts:
                repeating = self.lookup.span(seq, self.num_running, lambda: self.own_rate(seq))
                if repeating is not None:
                    return [repeating]
            known = decode_span(seq)
        else:
            fit_draft(seq, block)
            known = Span(seq, Phase.VERIFY, block.start, list(block.token_ids), CAUSAL, num_logits=len(block))
        count = len(known.token_ids)
        width = min(self.width(seq), seq.num_remaining - count)
        # After a drafted end nothing follows: it is the answer's, or the masks have seen what it is not.
        if width < 2 or any(token in seq.end_token_ids for token in known.token_ids[1:]):
            return [known]
        index = seq.stats.blocks if block is None else block.index + 1
        seq.next_block = Block.fresh(known.end, width, index, awaits_anchor=True)
        masks = [self.mask_token_id] * (width - 1)
        draft = Span(seq, Phase.DRAFT, known.end, masks, CAUSAL, num_logits=len(masks), second=True, optional=True)
        return [known, draft]

    def decide(self, group: StepGroup, logits: Logits) -> Choices:
        if group.phase is Phase.DRAFT:
            return draft_choices(self.sampler, group, logits, shift=1)
        return super().decide(group, logits)

    def conclude(self, span: Span, choices: HostChoices, i: int) -> StepOutcome:
        if span.phase is Phase.DRAFT:
            return masks_outcome(span, choices, i)
        if span.phase is Phase.VERIFY:
            return super().conclude(span, choices, i)
        outcome, seq = next_token_outcome(span, choices, i), span.seq
        begin_next_block(seq, outcome)
        return outcome


class IntrospectiveAuto(IntrospectiveSpeculation):
    """The same, with as many drafts as pay. The request's block length is the widest that a block may be."""

    mode = "auto"

    def own_rate(self, seq: Sequence) -> float:
        return self.controller.best_rate(seq, self.num_running, seq.request.decoding.block_length)

    def width(self, seq: Sequence) -> int:
        return self.controller.draft_width(seq, self.num_running, seq.request.decoding.block_length)


def masks_outcome(span: Span, choices: HostChoices, i: int) -> StepOutcome:
    """Writes what the masks drafted into the block that begins with the new anchor, unless a rejection dropped it."""
    block = refined_block(span)
    if block is not None:
        for j, (token, confidence) in enumerate(zip(choices.token_ids[i], choices.confidences[i], strict=True), 1):
            block.token_ids[j], block.masked[j], block.confidences[j] = token, False, confidence
        block.steps += 1
        if span.seq.grammar is not None:  # by position: the anchor's has none
            block.candidates = Candidates([[], *choices.top_ids[i]], [[], *choices.top_logprobs[i]])
    return StepOutcome(span, finite=choices.finite[i])
