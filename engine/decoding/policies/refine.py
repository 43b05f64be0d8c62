"""Refinement of uniform noise: blocks are canvases of random tokens, and every position may change in every step.

The published loop of DiffusionGemma (transformers' `diffusion_gemma`), whose sampler is bounded by entropy (arXiv
2505.24857). A step sees the whole canvas and draws a token at every position. Where the distributions have least
entropy the draws are kept, as long as these entropies stay within a bound; all other positions become random again.
What the step thought likely tells the next one (self-conditioning). The answer is what the last step found likeliest,
so nothing has settled before a canvas ends. It ends once the likeliest tokens stay the same and are certain, or after
as many steps as it may take; then it is encoded causally, in one pass with the next canvas's first step.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import Protocol

import numpy as np
import torch

from engine.batch import CAUSAL, KVLimits, Phase, Span, StepGroup, canvas_slot
from engine.decoding.blocks import refined_block
from engine.decoding.contract import DecodingPolicy
from engine.decoding.results import Choices, HostChoices, StepOutcome, read_logprob, with_logprobs
from engine.device.transfer import to_device
from engine.models.spec import ModelSpec, Refinement
from engine.request import GREEDY_BELOW
from engine.sampling.chosen import Chosen
from engine.sampling.divided import Logits, whole
from engine.sampling.filters import best_tokens, sample
from engine.sampling.logprobs import log_probabilities
from engine.sampling.noise import step_places, uniform_tokens
from engine.sampling.sampler import Sampler
from engine.sequence import Block, Sequence


class Memory(Protocol):
    """Where the device keeps what a step thought likely, for the next one."""

    @property
    def vocab_size(self) -> int:
        """The tokens that a canvas may hold."""

    def remember(self, slots: Rows[int], logits: torch.Tensor) -> None:
        """logits: [n, canvas length, V], of n slots; see engine.batch.canvas_slot."""


class Refine(DecodingPolicy):
    """Parallel refinement of one canvas after the other.

    What a canvas is told by its last step lives on the device, with the sequence's pages. A preempted canvas begins
    again: noise belongs to seed, position and step, so it becomes what it was.
    """

    mode = "diffusion"
    block_start = "noise"

    def __init__(
        self, sampler: Sampler, spec: ModelSpec, rule: Refinement, memory: Memory, *, shared_commit: bool
    ) -> None:
        """rule: the model's."""
        super().__init__(sampler, spec.mask_token_id)
        self._rule = rule
        self._length = spec.block_length
        self._memory = memory
        self._shares = shared_commit

    def plan(self, seq: Sequence) -> list[Span]:
        seq.next_block = None
        block = seq.block
        if block is None:
            block = seq.block = self._open(seq, len(seq.token_ids), seq.stats.blocks)
        elif block.steps and block.num_settled < len(block) and seq.frozen_block != block.start:
            block = seq.block = self._open(seq, block.start, block.index)
        if block.num_settled < len(block):
            return [self._refining_span(seq, block)]
        commit = Span(seq, Phase.COMMIT, block.start, list(block.token_ids), CAUSAL, num_logits=0)
        if not self._shares:
            return [commit]
        seq.next_block = self._open(seq, block.end, block.index + 1)
        span = self._refining_span(seq, seq.next_block)
        span.second = span.optional = True
        return [commit, span]

    def _open(self, seq: Sequence, start: int, index: int) -> Block:
        """A canvas of random tokens."""
        block = Block.fresh(start, self._length, index)
        positions = torch.arange(start, start + self._length)
        block.canvas = self._fresh_tokens([seq], positions[None], [0])[0].tolist()
        return block

    def _fresh_tokens(self, seqs: Rows[Sequence], positions: torch.Tensor, steps: Rows[int]) -> torch.Tensor:
        """[n, r] int64: the random tokens that canvases of n sequences may begin a step with. positions: [n, r]."""
        seeds = to_device([seq.request.sampling.seed for seq in seqs], positions.device)
        return uniform_tokens(
            seeds, step_places(positions, to_device(list(steps), positions.device)), self._memory.vocab_size
        )

    def _refining_span(self, seq: Sequence, block: Block) -> Span:
        return Span(
            seq, Phase.DENOISE, block.start, list(block.canvas), KVLimits.up_to(block.end), num_logits=len(block),
            step=block.steps,
        )  # fmt: skip

    def _steps_of(self, seq: Sequence) -> int:
        """Most steps of a canvas."""
        return seq.request.decoding.max_denoising_steps or self._rule.steps

    def _temperature_of(self, span: Span) -> float:
        """What the schedule divides logits by: from step to step less."""
        rule, steps = self._rule, self._steps_of(span.seq)
        left = (steps - span.step) / steps
        return rule.last_temperature + (rule.first_temperature - rule.last_temperature) * left

    def decide(self, group: StepGroup, logits: Logits) -> Choices:
        logits = whole(logits)
        device, rule = logits.device, self._rule
        seqs, steps = [span.seq for span in group.spans], [span.step for span in group.spans]
        positions = to_device(group.logit_positions(), device)
        logits, finite = self.sampler.edit(logits, seqs, positions)
        likeliest = best_tokens(logits)
        temperatures = to_device([self._temperature_of(span) for span in group.spans], device, logits.dtype)
        scaled = logits / temperatures[:, None, None]
        entropies = entropies_of(scaled)
        drawn = draw(scaled, likeliest, seqs, step_places(positions, to_device(steps, device)))
        fresh = self._fresh_tokens(seqs, positions, [step + 1 for step in steps])
        self._memory.remember([canvas_slot(span.seq.row, span.step + 1) for span in group.spans], scaled)
        choices = Choices(
            likeliest,
            finite,
            confidences=log_probabilities(logits, likeliest).exp(),
            canvas=torch.where(within_bound(entropies, rule.entropy_bound), drawn, fresh),
            certain=entropies.mean(dim=-1) < rule.confident_below,
        )
        return with_logprobs(choices, Chosen(likeliest, finite, logits), group)

    def conclude(self, span: Span, choices: HostChoices, i: int) -> StepOutcome:
        seq = span.seq
        if span.phase is Phase.COMMIT:
            steps = None if seq.block is None else seq.block.steps
            seq.block, seq.next_block = seq.next_block, None
            return StepOutcome(span, num_cached=span.end, closed_block_steps=steps)
        block = refined_block(span)
        if block is None or not choices.finite[i]:
            return StepOutcome(span, finite=choices.finite[i])
        tokens = choices.token_ids[i]
        block.unchanged = block.unchanged + 1 if block.steps and tokens == block.token_ids else 0
        block.token_ids, block.canvas, block.confidences = tokens, choices.canvas[i], [*choices.confidences[i]]
        block.masked = [False] * len(block)
        block.steps += 1
        seq.frozen_block = block.start
        stable = block.unchanged >= self._rule.stable_steps
        if block.steps < self._steps_of(seq) and not (stable and choices.certain[i]):
            return StepOutcome(span)
        block.num_settled = len(block)
        logprobs = [read_logprob(seq, choices, i, row) for row in range(len(block))]
        told = [logprob for logprob in logprobs if logprob is not None]
        return StepOutcome(span, token_ids=list(tokens), logprobs=told or None)

    def positions_wanted(self, seq: Sequence) -> int:
        return (len(seq.token_ids) if seq.block is None else seq.block.start) + self._length


def entropies_of(logits: torch.Tensor) -> torch.Tensor:
    """[...]: entropy of the distributions of logits [..., V], in nats."""
    terms: torch.Tensor = torch.special.entr(logits.softmax(dim=-1))
    return terms.sum(dim=-1)


def within_bound(entropies: torch.Tensor, bound: float) -> torch.Tensor:
    """[n, r] bool: the positions of least entropy, each as long as the entropies of those before it stay within the
    bound: at least one. entropies: [n, r]; of equals the leftmost comes first."""
    ordered, order = entropies.sort(dim=-1, stable=True)
    kept = ordered.cumsum(dim=-1) - ordered <= bound
    return torch.zeros_like(kept).scatter_(-1, order, kept)


def draw(logits: torch.Tensor, likeliest: torch.Tensor, seqs: Rows[Sequence], places: torch.Tensor) -> torch.Tensor:
    """[n, r] int64: a token at every position, by each request's temperature and filters.

    logits: [n, r, V], divided by the schedule's temperature; a request's own one comes on top. Where that is 0 the
    likeliest tokens [n, r] are drawn. places: [n, r], of the noise.
    """
    params = [seq.request.sampling for seq in seqs]
    sampled = [i for i, own in enumerate(params) if own.temperature >= GREEDY_BELOW]
    if not sampled:
        return likeliest
    drawn = likeliest.clone()
    index = to_device(np.array(sampled), logits.device)
    drawn[index] = sample(logits[index], [params[i] for i in sampled], places[index])
    return drawn
