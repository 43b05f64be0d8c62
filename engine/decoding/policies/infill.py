"""Infill: the gap between a prompt and a suffix, refined as one bidirectional window with the suffix in sight.

The window (gap and suffix) is encoded again in every pass, so nothing beyond the prompt is ever cached; there is no
anchor, and end and stop tokens are barred because the gap's length is given.
"""

from __future__ import annotations

from engine.batch import KVLimits, Phase, Span, StepGroup
from engine.decoding.blocks import block_span
from engine.decoding.contract import DecodingPolicy
from engine.decoding.policies.diffusion import denoise_choices, denoise_outcome
from engine.decoding.results import Choices, HostChoices, StepOutcome
from engine.sampling.divided import Logits
from engine.sequence import Block, Sequence


class Infill(DecodingPolicy):
    """Diffusion over one window: exactly `max_tokens` masks, then the suffix."""

    mode = "infill"
    block_start = "mask"

    def begin(self, seq: Sequence) -> None:
        seq.block = Block.fresh(seq.num_prompt, seq.request.max_tokens, 0)
        seq.bar(seq.end_token_ids)

    def plan(self, seq: Sequence) -> list[Span]:
        if seq.block is None:
            raise RuntimeError("an infill sequence always has its window open")
        span = block_span(seq, seq.block, Phase.DENOISE, self.mask_token_id)
        span.token_ids += seq.request.suffix_token_ids or []
        span.limits = KVLimits.up_to(span.end)
        return [span]

    def positions_wanted(self, seq: Sequence) -> int:
        return seq.num_prompt + seq.request.max_tokens + len(seq.request.suffix_token_ids or ())

    def decide(self, group: StepGroup, logits: Logits) -> Choices:
        return denoise_choices(self.sampler, group, logits)

    def conclude(self, span: Span, choices: HostChoices, i: int) -> StepOutcome:
        return denoise_outcome(span, choices, i)
