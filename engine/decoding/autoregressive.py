"""Autoregressive decoding: one token a pass, from the seed's causal logit."""

from __future__ import annotations

import torch

from engine.batch import Phase, Span, StepGroup
from engine.decoding.contract import (
    Choices,
    DecodingPolicy,
    HostChoices,
    StepOutcome,
    next_token_choices,
    next_token_outcome,
)
from engine.sequence import Sequence


def decode_span(seq: Sequence) -> Span:
    """The seed alone, causal."""
    return Span(seq, Phase.DECODE, seq.num_cached, seq.token_ids[-1:], kv_limit=None, num_logits=1)


class Autoregressive(DecodingPolicy):
    """Next-token decoding."""

    name = "ar"

    def plan(self, seq: Sequence, num_running: int) -> list[Span]:
        return [decode_span(seq)]

    def decide(self, group: StepGroup, logits: torch.Tensor) -> Choices:
        return next_token_choices(self.sampler, group, logits)

    def conclude(self, span: Span, choices: HostChoices, i: int) -> StepOutcome:
        return next_token_outcome(span, choices, i)
