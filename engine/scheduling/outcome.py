"""Applies the outcome of a step to its sequence: settled tokens, the end of the answer, events and counts."""

from __future__ import annotations

import copy

from engine.batch import BatchPlan, Phase
from engine.decoding.results import StepOutcome
from engine.events import (
    DraftUpdated,
    Finished,
    FinishReason,
    GenerationEvent,
    PromptScored,
    StepStats,
    TokensSettled,
    TokenUnmasking,
)
from engine.sequence import Sequence

NON_FINITE = "The model produced non-finite logits for this request."


def apply_outcome(outcome: StepOutcome, events: list[GenerationEvent], stats: StepStats) -> bool:
    """Advances the outcome's sequence and appends its events. Returns whether the request has finished."""
    seq = outcome.span.seq
    _count(outcome, stats)
    if outcome.error is not None or not outcome.finite:
        events.append(finish_event(seq, "error", error=outcome.error or NON_FINITE))
        return True
    if outcome.num_cached is not None:
        seq.num_cached = outcome.num_cached
    if outcome.prompt_logprobs:
        events.append(PromptScored(request_id=seq.request.request_id, logprobs=outcome.prompt_logprobs))
    tokens, reason, stop_token = _cut(seq, outcome.token_ids)
    seq.token_ids += tokens
    seq.stats.completion_tokens += len(tokens)
    stats.generated += len(tokens)
    visible = tokens[:-1] if stop_token is not None else tokens
    unmasking = _unmasking(seq, outcome, len(tokens))
    if visible:
        logprobs = outcome.logprobs[: len(visible)] if outcome.logprobs is not None else None
        events.append(
            TokensSettled(
                request_id=seq.request.request_id,
                token_ids=visible,
                stats=copy.copy(seq.stats),
                logprobs=logprobs,
                unmasking=None if unmasking is None else unmasking[: len(visible)],
            )
        )
    if outcome.exhausted:
        reason = "stop"
    if reason is not None:
        finished = finish_event(seq, reason, stop_token_id=stop_token)
        if unmasking is not None and stop_token is not None:
            finished.stop_unmasking = unmasking[-1]
        events.append(finished)
        return True
    if seq.request.include_drafts and outcome.span.phase in (Phase.DENOISE, Phase.DRAFT):
        _report_draft(seq, events)
    return False


def finish_event(
    seq: Sequence, reason: FinishReason, *, stop_token_id: int | None = None, error: str | None = None
) -> Finished:
    """The last event of a sequence."""
    return Finished(
        request_id=seq.request.request_id,
        reason=reason,
        stats=copy.copy(seq.stats),
        stop_token_id=stop_token_id,
        error=error,
    )


def _unmasking(seq: Sequence, outcome: StepOutcome, count: int) -> list[TokenUnmasking] | None:
    """How the first `count` settled tokens were unmasked, where that is wanted."""
    if not seq.request.trace_unmasking:
        return None
    if outcome.unmasking is None:  # a causal pass chose the first token of the block that comes next
        return [TokenUnmasking(seq.stats.blocks, 0, None)] * count
    return outcome.unmasking[:count]


def _cut(seq: Sequence, tokens: list[int]) -> tuple[list[int], FinishReason | None, int | None]:
    """Cuts newly settled tokens at the first end token (which is kept) or at `max_tokens`."""
    if not tokens:
        return [], None, None
    remaining = seq.num_remaining
    tokens = tokens[:remaining]
    for i, token in enumerate(tokens):
        if token in seq.end_token_ids:
            return tokens[: i + 1], "stop", token
    return tokens, "length" if len(tokens) == remaining else None, None


def _count(outcome: StepOutcome, stats: StepStats) -> None:
    totals, phase = outcome.span.seq.stats, outcome.span.phase
    if phase is not Phase.PREFILL:
        totals.passes += not outcome.span.second
        totals.denoising_steps += phase in (Phase.DENOISE, Phase.DRAFT)
    if outcome.accepted is not None:
        totals.draft_tokens += outcome.drafted
        totals.accepted_draft_tokens += outcome.accepted
        if outcome.predicted:
            totals.accepted_prediction_tokens += outcome.accepted
            totals.rejected_prediction_tokens += outcome.drafted - outcome.accepted
        stats.draft_tokens += outcome.drafted
        stats.accepted_draft_lengths.append(outcome.accepted)
    if outcome.closed_block_steps is not None:
        totals.blocks += 1
        stats.denoising_steps_per_block.append(outcome.closed_block_steps)
    totals.edited_tokens += outcome.edited
    stats.edited_tokens += outcome.edited
    stats.nan_logits += not outcome.finite


def _report_draft(seq: Sequence, events: list[GenerationEvent]) -> None:
    block = seq.block
    if block is None:
        return
    # A block may reach beyond `max_tokens`; nobody will ever see what stands there.
    rest = range(block.num_settled, min(len(block), block.num_settled + seq.num_remaining))
    events.append(
        DraftUpdated(
            request_id=seq.request.request_id,
            block=block.index,
            step=block.steps,
            token_ids=[None if block.masked[j] else block.token_ids[j] for j in rest],
            confidences=[None if block.masked[j] else block.confidences[j] for j in rest],
            length=len(block),
        )
    )


def count_plan(plan: BatchPlan, stats: StepStats) -> None:
    """Counts the sequences, tokens and phases of a pass."""
    seqs: set[Sequence] = set()
    spans = 0
    for group in plan.groups:
        stats.phases[group.phase] = stats.phases.get(group.phase, 0) + len(group.spans)
        stats.tokens += sum(len(span.token_ids) for span in group.spans)
        seqs.update(span.seq for span in group.spans)
        spans += len(group.spans)
    stats.sequences, stats.shared = len(seqs), spans - len(seqs)
