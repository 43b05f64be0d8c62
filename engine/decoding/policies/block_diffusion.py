"""Block diffusion for models whose context is encoded by blocks (SDAR, Stable-DiffCoder, Fast-dLLM v2).

Blocks have the length that the model was trained with and are counted from position 0, the prompt's included. Prefill
encodes the prompt's whole blocks; the tokens past the last boundary are the beginning of the first block that is
refined. A finished block is encoded once more, both ways within itself: that commit pass makes its KV valid.

Where no anchor is involved the same pass takes the first denoising step of the next block, which sees the finished
one as it will stay: the tokens are those of two passes, for one pass less a block. Where the commit's last logit
chooses the next block's first token (`anchors_blocks`), that step has to wait for it.
"""

from __future__ import annotations

from engine.batch import Phase, Span, StepGroup
from engine.decoding.blocks import block_span, open_tail_block
from engine.decoding.causal_steps import next_token_choices, next_token_outcome
from engine.decoding.contract import DecodingPolicy
from engine.decoding.policies.diffusion import denoise_choices, denoise_outcome
from engine.decoding.results import Choices, HostChoices, StepOutcome
from engine.decoding.unmask import DenoisingTraits
from engine.models.spec import ModelSpec
from engine.sampling.divided import Logits
from engine.sampling.sampler import Sampler
from engine.sequence import Block, Sequence


class BlockDiffusion(DecodingPolicy):
    """Parallel refinement of one block after the other, in a context of whole blocks."""

    mode = "diffusion"
    block_start = "tail"

    def __init__(self, sampler: Sampler, spec: ModelSpec, *, shared_commit: bool) -> None:
        super().__init__(sampler, spec.mask_token_id)
        self._block_length = spec.block_length
        self._anchors = spec.anchors_blocks
        self._ragged = spec.ragged_end
        self._sub_block = spec.sub_block
        self._traits = DenoisingTraits.of(spec)
        self._shares = shared_commit and not spec.anchors_blocks

    def plan(self, seq: Sequence) -> list[Span]:
        seq.next_block = None
        block = seq.block
        if block is None:
            start = self.cache_target(seq)
            block = seq.block = open_tail_block(seq, start, self._end(seq, start), seq.stats.blocks)
        if self._is_open(seq, block):
            return [self._denoising_span(seq, block)]
        commit = block_span(seq, block, Phase.COMMIT, self.mask_token_id)
        commit.num_logits, commit.logit_start = int(self._anchors), len(block) - 1
        if not self._shares:
            return [commit]
        seq.next_block = open_tail_block(seq, block.end, self._end(seq, block.end), block.index + 1)
        denoise = self._denoising_span(seq, seq.next_block)
        denoise.second = denoise.optional = True
        return [commit, denoise]

    def _is_open(self, seq: Sequence, block: Block) -> bool:
        """Whether the block is refined further. Otherwise it is encoded for good."""
        return any(block.masked)

    def _end(self, seq: Sequence, start: int) -> int:
        """End of the block that begins at `start`."""
        end = start + self._block_length
        return min(end, seq.num_prompt + seq.request.max_tokens) if self._ragged else end

    def _denoising_span(self, seq: Sequence, block: Block) -> Span:
        """A span over the block, with logits for its masks, or for the leftmost sub-block that still holds some."""
        span = block_span(seq, block, Phase.DENOISE, self.mask_token_id)
        first, end, shift = 0, len(block), int(self._traits.logit_shift)
        if self._sub_block is not None:
            first = block.masked.index(True) // self._sub_block * self._sub_block
            end = min(first + self._sub_block, end)
        first = max(first, shift)  # no logits are shifted to the first position, which is an anchor or of the prompt
        span.logit_start, span.num_logits = first - shift, end - first
        return span

    def decide(self, group: StepGroup, logits: Logits) -> Choices:
        if group.phase is Phase.COMMIT:
            return next_token_choices(self.sampler, group, logits)
        return denoise_choices(self.sampler, group, logits, self._traits)

    def conclude(self, span: Span, choices: HostChoices, i: int) -> StepOutcome:
        if span.phase is Phase.DENOISE:
            return denoise_outcome(span, choices, i, self._traits)
        seq = span.seq
        outcome = next_token_outcome(span, choices, i) if span.num_logits else StepOutcome(span, num_cached=span.end)
        if seq.block is not None:
            outcome.closed_block_steps = seq.block.steps
        seq.block, seq.next_block = seq.next_block, None
        return outcome

    def needs_anchor(self, seq: Sequence) -> bool:
        return self._anchors and seq.block is None and len(seq.token_ids) % self._block_length == 0

    def cache_target(self, seq: Sequence) -> int:
        if seq.block is not None:
            return seq.block.start
        return len(seq.token_ids) // self._block_length * self._block_length

    def positions_wanted(self, seq: Sequence) -> int:
        return self.cache_target(seq) + self._block_length
