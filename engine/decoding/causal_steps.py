"""The causal steps that policies share: the next token, which AR decoding is made of, and verification.

Row i of a verifying pass chooses the token that AR would choose after the first i drafts, with AR's own noise, so the
accepted drafts and the bonus token behind them are AR's output exactly, whoever drafted them.
"""

from __future__ import annotations

import torch

from engine.batch import CAUSAL, Phase, Span, StepGroup
from engine.decoding.results import Choices, HostChoices, StepOutcome, read_logprob, with_logprobs
from engine.device.transfer import to_device
from engine.sampling.divided import Logits
from engine.sampling.sampler import Sampler
from engine.sequence import Sequence


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
    seq, block = span.seq, span.seq.block
    accepted = choices.accepted[i]
    whole = accepted == len(span.token_ids) - 1
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
        predicted=block is None and seq.repeats is not None and seq.repeats.predicted,
        closed_block_steps=None if block is None else block.steps,
    )


def begin_next_block(seq: Sequence, outcome: StepOutcome) -> None:
    """Goes on to the block that was opened beside this step, whose anchor is the token that the step chose."""
    seq.block, seq.next_block = seq.next_block, None
    if seq.block is not None:
        if outcome.token_ids:
            seq.block.place_anchor(outcome.token_ids[0])
        else:  # a grammar left nothing to choose: the answer ends here
            seq.block = None
