"""Infill: the gap between a prompt and a suffix, refined as one bidirectional window with the suffix in sight.

The window (gap and suffix) is encoded again in every pass, so nothing beyond the prompt is ever cached; there is no
causal seed, and end tokens are banned because the gap's length is given.
"""

from __future__ import annotations

import torch

from engine.batch import Phase, Span, StepGroup
from engine.decoding.contract import Choices, DecodingPolicy, HostChoices, StepOutcome, block_span
from engine.decoding.diffusion import denoise_choices, denoise_outcome
from engine.sampling.sampler import Sampler
from engine.sequence import Block, Sequence


class Infill(DecodingPolicy):
    """Diffusion over one window: exactly `max_tokens` masks, then the suffix."""

    name = "infill"

    def __init__(
        self, sampler: Sampler, mask_token_id: int, device: torch.device, end_token_ids: frozenset[int]
    ) -> None:
        super().__init__(sampler, mask_token_id, device)
        self.end_token_ids = end_token_ids

    def begin(self, seq: Sequence) -> None:
        seq.block = Block.fresh(seq.num_prompt, seq.request.max_tokens, 0)
        seq.end_token_ids |= self.end_token_ids

    def plan(self, seq: Sequence, num_running: int) -> list[Span]:
        if seq.block is None:
            raise RuntimeError("an infill sequence always has its window open")
        span = block_span(seq, seq.block, Phase.DENOISE, self.mask_token_id)
        span.token_ids += seq.request.suffix_token_ids or []
        span.kv_limit = span.end
        return [span]

    def decide(self, group: StepGroup, logits: torch.Tensor) -> Choices:
        never_end = [span.seq.request.max_tokens for span in group.spans]
        return denoise_choices(self.sampler, group, logits, min_tokens=never_end)

    def conclude(self, span: Span, choices: HostChoices, i: int) -> StepOutcome:
        return denoise_outcome(span, choices, i)
