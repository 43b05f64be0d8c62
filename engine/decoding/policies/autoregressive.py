"""Autoregressive decoding, one token a pass, and the next-token step that other policies share with it."""

from __future__ import annotations

from engine.batch import CAUSAL, Phase, Span, StepGroup
from engine.decoding.contract import DecodingPolicy
from engine.decoding.results import Choices, HostChoices, StepOutcome, read_logprob, with_logprobs
from engine.device.transfer import to_device
from engine.sampling.divided import Logits
from engine.sampling.sampler import Sampler
from engine.sequence import Sequence


class Autoregressive(DecodingPolicy):
    """Next-token decoding."""

    mode = "ar"

    def plan(self, seq: Sequence) -> list[Span]:
        return [decode_span(seq)]

    def decide(self, group: StepGroup, logits: Logits) -> Choices:
        return next_token_choices(self.sampler, group, logits)

    def conclude(self, span: Span, choices: HostChoices, i: int) -> StepOutcome:
        return next_token_outcome(span, choices, i)


def decode_span(seq: Sequence) -> Span:
    """A causal span of the anchor alone, whose logit chooses the next token."""
    return Span(seq, Phase.DECODE, seq.num_cached, seq.token_ids[-1:], CAUSAL, num_logits=1)


def next_token_choices(sampler: Sampler, group: StepGroup, logits: Logits) -> Choices:
    """One causal choice a span: the next token of AR decoding, or the anchor after a prefill or a commit."""
    seqs = [span.seq for span in group.spans]
    positions = None
    if not all(seq.plain for seq in seqs):
        positions = to_device(group.logit_positions(1), logits.device)  # row p chooses the token at p + 1
    chosen = sampler.choose(logits, seqs, positions, draft_tokens=[[]] * len(seqs))
    return with_logprobs(Choices(chosen.token_ids, chosen.finite), chosen, group)


def next_token_outcome(span: Span, choices: HostChoices, i: int) -> StepOutcome:
    """The outcome of `next_token_choices`: the span is cached and one more token has settled."""
    if choices.token_ids[i][0] < 0:
        return exhausted_outcome(span, choices.finite[i])
    logprob = read_logprob(span.seq, choices, i, 0)
    return StepOutcome(
        span,
        token_ids=[choices.token_ids[i][0]],
        logprobs=None if logprob is None else [logprob],
        num_cached=span.end,
        finite=choices.finite[i],
    )


def exhausted_outcome(span: Span, finite: bool) -> StepOutcome:
    """The end of an answer that no token may continue: a good one if the answer is a whole text of its grammar."""
    state = span.seq.grammar
    if state is None:
        raise RuntimeError("only a grammar can leave nothing to choose")
    if state.is_complete(span.seq.token_ids):
        return StepOutcome(span, finite=finite, exhausted=True)
    return StepOutcome(span, finite=finite, error=state.failure if finite else None)
