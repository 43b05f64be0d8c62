"""Autoregressive decoding: one token a pass, or several where the answer repeats a text that is known."""

from __future__ import annotations

from engine.batch import Phase, Span, StepGroup
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
from engine.sampling.divided import Logits
from engine.sampling.sampler import Sampler
from engine.sequence import Sequence


class Autoregressive(DecodingPolicy):
    """Next-token decoding."""

    mode = "ar"

    def __init__(self, sampler: Sampler, mask_token_id: int, lookup: TextLookup) -> None:
        super().__init__(sampler, mask_token_id)
        self.lookup = lookup
        self.num_running = 1

    def begin(self, seq: Sequence) -> None:
        self.lookup.begin(seq)

    def begin_pass(self, num_running: int) -> None:
        self.num_running = num_running

    def plan(self, seq: Sequence) -> list[Span]:
        if seq.known_texts:
            controller = self.lookup.controller
            span = self.lookup.span(seq, self.num_running, lambda: controller.plain_rate(seq, self.num_running))
            if span is not None:
                return [span]
        return [decode_span(seq)]

    def decide(self, group: StepGroup, logits: Logits) -> Choices:
        if group.phase is Phase.VERIFY:
            return verify_choices(self.sampler, group, logits)
        return next_token_choices(self.sampler, group, logits)

    def conclude(self, span: Span, choices: HostChoices, i: int) -> StepOutcome:
        if span.phase is Phase.VERIFY:
            return verify_outcome(span, choices, i)
        return next_token_outcome(span, choices, i)
