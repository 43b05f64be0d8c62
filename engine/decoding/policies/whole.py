"""Diffusion for models whose context sees both ways (LLaDA, arXiv 2502.09992; Dream, arXiv 2508.15487).

Every token of such a model sees the whole text, masks included: a prompt's KV changes whenever a token of the answer
does. So nothing is ever cached, the answer's length is an input, and every pass runs prompt and answer as one span.
The answer is refined block by block; logits are wanted for the open block alone. Blocks right of it are all masks,
those left of it have settled.

Two published approximations (Fast-dLLM, arXiv 2505.22618) run the whole text at a block's first step only. Until the
block is finished they keep the KV of that pass: of everything before the block (`prefix`), or of everything but the
block (`dual`). They give other answers than exact passes, the same ones in any company: what a preempted sequence has
lost is run again, as the text was when its block began.
"""

from __future__ import annotations

from typing import Literal

from engine.batch import KVLimits, Phase, Span, StepGroup
from engine.decoding.blocks import open_block, shown_ids
from engine.decoding.contract import DecodingPolicy
from engine.decoding.orders import skip_idle_steps
from engine.decoding.policies.diffusion import denoise_choices, denoise_outcome
from engine.decoding.results import Choices, HostChoices, StepOutcome
from engine.decoding.unmask import PLAIN, DenoisingTraits
from engine.sampling.divided import Logits
from engine.sampling.sampler import Sampler
from engine.sequence import Block, Sequence

ContextCache = Literal["none", "prefix", "dual"]


class Whole(DecodingPolicy):
    """Blocks of an answer, refined in sight of the whole text."""

    mode = "diffusion"
    block_start = "mask"

    def __init__(
        self,
        sampler: Sampler,
        mask_token_id: int,
        traits: DenoisingTraits = PLAIN,
        context_cache: ContextCache = "none",
    ) -> None:
        """context_cache: see EngineConfig."""
        super().__init__(sampler, mask_token_id)
        self.traits = traits
        self.shift = int(traits.logit_shift)
        self.context_cache = context_cache

    def cache_target(self, seq: Sequence) -> int:
        return 0

    def positions_wanted(self, seq: Sequence) -> int:
        return seq.request.text_length

    def plan(self, seq: Sequence) -> list[Span]:
        block = seq.block or self._open(seq)
        skip_idle_steps(seq, block)
        if self.context_cache == "none":
            return [self._refine(seq, block, 0)]
        first = self._first_of(seq, block)
        if seq.frozen_block == first:
            return [self._refine(seq, block, first)]
        if block.start == first and all(block.masked):
            return [self._refine(seq, block, 0)]
        return [self._restore(seq, first)]

    def _open(self, seq: Sequence) -> Block:
        """Opens the sequence's next block.

        Shifted logits choose a block's first token at the position before it, which passes from a context cache do not
        run: that token is a block of its own, chosen in the pass that fills the cache, and the rest is another.
        """
        length = seq.request.block_length
        done = seq.num_generated % length
        if self.shift and self.context_cache != "none" and done == 0:
            return open_block(seq, 1, "mask")
        block = open_block(seq, length - done, "mask")
        if done and seq.request.decoding.max_denoising_steps is not None:
            block.steps = 1  # the first token's
        return block

    def _first_of(self, seq: Sequence, block: Block) -> int:
        """Position where the answer's block begins that `block` is, or is the rest of."""
        within = block.start - seq.num_prompt
        return block.start - within % seq.request.block_length

    def _refine(self, seq: Sequence, block: Block, start: int) -> Span:
        """A denoising step of the block that runs the text from `start` on, as far as the context cache does not hold
        it."""
        end = seq.request.text_length
        limits = KVLimits.up_to(end)
        if start and self.context_cache == "dual":
            end = block.end
        ids = (
            seq.token_ids[start : block.start]
            + shown_ids(block, self.mask_token_id)
            + self._behind(seq, block.end, end)
        )
        return Span(
            seq, Phase.DENOISE, start, ids, limits,
            num_logits=len(block), logit_start=block.start - self.shift - start,
        )  # fmt: skip

    def _restore(self, seq: Sequence, first: int) -> Span:
        """Fills the context cache again: the text as it was before the block at `first` had any token."""
        end = seq.request.text_length
        ids = seq.token_ids[:first] + self._behind(seq, first, end)
        return Span(seq, Phase.COMMIT, 0, ids, KVLimits.up_to(end), num_logits=0)

    def _behind(self, seq: Sequence, start: int, end: int) -> list[int]:
        """The text in [start, end), of which nothing has been chosen: masks and the suffix."""
        suffix = seq.request.suffix_token_ids or []
        masks = seq.request.text_length - len(suffix) - start
        return ([self.mask_token_id] * masks + suffix)[: end - start]

    def decide(self, group: StepGroup, logits: Logits) -> Choices:
        return denoise_choices(self.sampler, group, logits, self.traits)

    def conclude(self, span: Span, choices: HostChoices, i: int) -> StepOutcome:
        seq, block = span.seq, span.seq.block
        if block is None:
            raise RuntimeError("a pass refines an open block")
        if self.context_cache != "none":
            seq.frozen_block = self._first_of(seq, block)
        if not span.num_logits:
            return StepOutcome(span)
        outcome = denoise_outcome(span, choices, i, self.traits)
        if not any(block.masked):
            if len(block) > 1 or seq.request.block_length == 1:
                outcome.closed_block_steps = block.steps
            seq.block = None
        return outcome


class WholeInfill(Whole):
    """The gap between a prompt and a suffix: one block of exactly `max_tokens`, without end tokens."""

    mode = "infill"

    def begin(self, seq: Sequence) -> None:
        seq.bar(seq.end_token_ids)
