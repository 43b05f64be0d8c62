"""Block diffusion with confidence-threshold unmasking or an even schedule (Nemotron-Labs-Diffusion, arXiv 2607.05722).

A block starts as [seed, MASK, ...]. Denoising passes see the whole canvas both ways; each unmasks the positions it is
confident of. A finished block is encoded once more, causally: that commit pass writes its KV, and its last logit is
the next seed. With `shared_commit` that pass also runs the first denoising step of the next canvas, whose position 0 is
still a mask and takes no part in the step: the seed that the same pass chooses replaces it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows

import torch

from engine.batch import Phase, Span, StepGroup
from engine.decoding.contract import (
    Choices,
    DecodingPolicy,
    HostChoices,
    StepOutcome,
    block_length_of,
    block_span,
    next_token_choices,
    next_token_outcome,
    read_logprob,
    refined_block,
    same_rows,
    with_logprobs,
)
from engine.device.transfer import to_device
from engine.sampling.sampler import Sampler
from engine.sequence import Block, Sequence


class Diffusion(DecodingPolicy):
    """Parallel refinement of one block after the other."""

    name = "diffusion"

    def __init__(self, sampler: Sampler, mask_token_id: int, device: torch.device, shared_commit: bool = False) -> None:
        super().__init__(sampler, mask_token_id, device)
        self.shared_commit = shared_commit

    def plan(self, seq: Sequence, num_running: int) -> list[Span]:
        block, seq.next_block = seq.block, None
        if block is None:
            start = len(seq.token_ids) - 1
            block = seq.block = Block.fresh(start, block_length_of(seq), seq.stats.blocks, seq.token_ids[-1])
        if any(block.masked):
            return [block_span(seq, block, Phase.DENOISE, self.mask_token_id)]
        commit = Span(
            seq, Phase.COMMIT, block.start, list(block.token_ids),
            kv_limit=None, num_logits=1, logit_start=len(block) - 1,
        )  # fmt: skip
        if not self.shared_commit or seq.num_remaining < 2:
            return [commit]
        length = min(seq.request.decoding.block_length, seq.num_remaining)
        seq.next_block = Block.fresh(block.end, length, block.index + 1, awaits_anchor=True)
        denoise = block_span(seq, seq.next_block, Phase.DENOISE, self.mask_token_id)
        denoise.second = True
        return [commit, denoise]

    def decide(self, group: StepGroup, logits: torch.Tensor) -> Choices:
        if group.phase is Phase.COMMIT:
            return next_token_choices(self.sampler, group, logits)
        return denoise_choices(self.sampler, group, logits)

    def conclude(self, span: Span, choices: HostChoices, i: int) -> StepOutcome:
        if span.phase is Phase.DENOISE:
            return denoise_outcome(span, choices, i)
        seq = span.seq
        outcome = next_token_outcome(span, choices, i)
        if seq.block is not None:
            outcome.closed_block_steps = seq.block.steps
        seq.block, seq.next_block = seq.next_block, None
        if seq.block is not None:
            seq.block.place_anchor(outcome.token_ids[0])
        return outcome


def denoise_choices(
    sampler: Sampler, group: StepGroup, logits: torch.Tensor, min_tokens: Rows[int] | None = None
) -> Choices:
    """Chooses a token at every masked position and decides which of them settle. logits: [n, r, V]."""
    device = logits.device
    blocks = [block for span in group.spans if (block := refined_block(span)) is not None]
    seqs = [span.seq for span in group.spans]
    masked = to_device([block.masked for block in blocks], device)
    unsettled = to_device([_unsettled(block) for block in blocks], device)
    positions = same_rows(group, device)
    chosen = sampler.choose(logits, seqs, positions, drafts=unsettled, min_tokens=min_tokens)
    confidences = chosen.log_probabilities().exp()
    masked[:, 0] &= ~to_device([block.awaits_anchor for block in blocks], device)
    thresholds = [
        seq.request.decoding.threshold if seq.request.decoding.threshold is not None else math.inf for seq in seqs
    ]
    quotas = [quota(seq, block) for seq, block in zip(seqs, blocks, strict=True)]
    unmask = select_unmask(
        confidences,
        masked,
        to_device(thresholds, device, confidences.dtype),
        to_device(quotas, device),
    )
    return with_logprobs(Choices(chosen.token_ids, chosen.finite, confidences, unmask), chosen, group)


def _unsettled(block: Block) -> list[int]:
    """Unmasked tokens of the canvas that the sequence's own history does not hold yet, -1 elsewhere."""
    return [
        -1 if masked or j < block.num_settled else token
        for j, (token, masked) in enumerate(zip(block.token_ids, block.masked, strict=True))
    ]


def quota(seq: Sequence, block: Block) -> int:
    """Fewest positions this step must unmask for the block to finish within its denoising steps: an even schedule."""
    steps = seq.request.decoding.max_denoising_steps or len(block)
    return math.ceil((block.num_masked - block.awaits_anchor) / max(1, steps - block.steps))


def select_unmask(
    confidences: torch.Tensor, candidates: torch.Tensor, thresholds: torch.Tensor, quotas: torch.Tensor
) -> torch.Tensor:
    """Positions that settle: confidence at or above the threshold, and always the `quota` most confident ones.

    confidences: [n, r]; candidates: [n, r] bool; thresholds: [n]; quotas: [n] int. Returns [n, r] bool, a subset of
    the candidates. Of equal confidences the leftmost wins.
    """
    ranked = confidences.masked_fill(~candidates, -1.0)
    order = ranked.argsort(dim=-1, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank.scatter_(-1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order))
    return candidates & ((confidences >= thresholds[:, None]) | (rank < quotas[:, None]))


def denoise_outcome(span: Span, choices: HostChoices, i: int) -> StepOutcome:
    """Writes what was unmasked into the block; the tokens left of its first mask have settled."""
    block = refined_block(span)
    if block is None or not choices["finite"][i]:
        return StepOutcome(span, finite=choices["finite"][i])
    tokens, confidences = choices["token_ids"][i], choices["confidences"][i]
    for j, unmask in enumerate(choices["unmask"][i]):
        if unmask:
            block.token_ids[j], block.masked[j], block.confidences[j] = tokens[j], False, confidences[j]
            logprob = read_logprob(span.seq, choices, i, j)
            if logprob is not None:
                block.logprobs[j] = logprob
    block.steps += 1
    settled = block.masked.index(True) if True in block.masked else len(block)
    new = range(block.num_settled, settled)
    block.num_settled = max(settled, block.num_settled)
    wants_logprobs = span.seq.request.sampling.logprobs is not None
    return StepOutcome(
        span,
        token_ids=[block.token_ids[j] for j in new],
        logprobs=[block.logprobs.pop(j) for j in new] if wants_logprobs and new else None,
    )
