"""Causal prefill: shared by all policies, because committed context is encoded causally whatever the mode."""

from __future__ import annotations

import torch

from engine.batch import Phase, Span, StepGroup
from engine.decoding.base import (
    Choices,
    DecodingPolicy,
    HostChoices,
    StepOutcome,
    next_token_choices,
    next_token_outcome,
)
from engine.sequence import Sequence


def prefill_target(seq: Sequence) -> int:
    """KV positions that must be cached before the sequence's policy can plan.

    An open block (also one that outlived a preemption) starts where the cache must end; otherwise the last settled
    token is the seed and stays out. A fresh sequence has no seed yet: its whole prompt is run, and gives one.
    """
    if seq.block is not None:
        return seq.block.start
    return len(seq.token_ids) - 1 if seq.num_generated else seq.num_prompt


def needs_seed(seq: Sequence) -> bool:
    """Whether the last prefill chunk's last logit chooses the first token."""
    return seq.block is None and not seq.num_generated


class Prefill(DecodingPolicy):
    """Chunks of the prompt, or of everything settled so far after a preemption."""

    name = "prefill"

    def plan(self, seq: Sequence, num_running: int) -> list[Span]:
        return [self.chunk(seq, len(seq.token_ids))]

    def chunk(self, seq: Sequence, max_tokens: int) -> Span:
        """The next chunk, at most `max_tokens` long. Only the last one needs a logit, and only if it gives the seed."""
        target = prefill_target(seq)
        end = min(target, seq.num_cached + max_tokens)
        length = end - seq.num_cached
        seeds = end == target and needs_seed(seq)
        return Span(
            seq, Phase.PREFILL, seq.num_cached, seq.token_ids[seq.num_cached : end],
            kv_limit=None, num_logits=int(seeds), logit_start=length - 1,
        )  # fmt: skip

    def decide(self, group: StepGroup, logits: torch.Tensor) -> Choices:
        return next_token_choices(self.sampler, group, logits)

    def conclude(self, span: Span, choices: HostChoices, i: int) -> StepOutcome:
        if not span.num_logits:
            return StepOutcome(span, num_cached=span.end)
        return next_token_outcome(span, choices, i)
