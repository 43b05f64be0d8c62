"""From planned spans to the step groups of a pass."""

from __future__ import annotations

from collections.abc import Iterable

from engine.batch import BatchPlan, Phase, Span, StepGroup

# Within a pass the causal spans come first: a shared pass's second span depends on what the first one settles.
PHASE_ORDER = {phase: i for i, phase in enumerate(
    (Phase.PREFILL, Phase.DECODE, Phase.COMMIT, Phase.VERIFY, Phase.DENOISE, Phase.DRAFT)
)}  # fmt: skip


def group_spans(planned: Iterable[list[Span]]) -> BatchPlan:
    """Spans of the same mode, phase and count of logit rows, contiguous, causal phases first. planned: by sequence."""
    groups: dict[tuple[str, Phase, int], StepGroup] = {}
    for spans in planned:
        for span in spans:
            key = ("" if span.phase is Phase.PREFILL else span.seq.mode, span.phase, span.num_logits)
            if key not in groups:
                groups[key] = StepGroup(*key)
            groups[key].spans.append(span)
    return BatchPlan(sorted(groups.values(), key=lambda group: PHASE_ORDER[group.phase]))


def count_tokens(spans: list[Span]) -> int:
    """Query tokens of one sequence's spans."""
    return len(spans[0].token_ids) if len(spans) == 1 else sum(len(span.token_ids) for span in spans)


def without_optional(spans: list[Span]) -> list[Span]:
    """Without the optional second span of a shared pass, and without the block that it would have refined."""
    if spans[-1].optional:
        spans[-1].seq.next_block = None
        return spans[:-1]
    return spans
