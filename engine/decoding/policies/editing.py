"""Block diffusion that edits (LLaDA2.1, arXiv 2602.08676): what is unmasked may be replaced until its block settles.

A step unmasks as block diffusion does. Beside that an unmasked token gives way to the one that the step finds at its
place, if that is another one and its confidence is above the edit threshold. A block without masks is refined further:
until a step changes nothing, or for `max_post_steps` steps.

Only then its tokens settle, all at once: `Block.num_settled` stands still until then, and only what lies beyond it is
ever written. A step that found the whole block and changed nothing has encoded it as it stays, so its KV is valid
without a commit. After the last of the `max_post_steps` it is not, if that one changed something.
"""

from __future__ import annotations

import math

import torch

from engine.batch import Phase, Span, StepGroup
from engine.decoding.blocks import refined_block
from engine.decoding.policies.block_diffusion import BlockDiffusion
from engine.decoding.policies.diffusion import block_of, denoise_choices, unsettled_ids
from engine.decoding.results import Choices, HostChoices, StepOutcome, read_logprob
from engine.decoding.unmask import note_unmasked, read_unmasking
from engine.device.transfer import to_device
from engine.sampling.divided import Logits
from engine.sequence import Block, Sequence


class EditingDiffusion(BlockDiffusion):
    """Block diffusion, with edits where a request has an edit threshold."""

    def _is_open(self, seq: Sequence, block: Block) -> bool:
        return any(block.masked) or (_edits(seq) and block.num_settled < len(block))

    def decide(self, group: StepGroup, logits: Logits) -> Choices:
        if group.phase is Phase.COMMIT or not any(_edits(span.seq) for span in group.spans):
            return super().decide(group, logits)
        choices = denoise_choices(self.sampler, group, logits, self._traits, reconsiders=True)
        if choices.unmask is None or choices.confidences is None:
            raise RuntimeError("a denoising step says which positions it unmasks, and how sure it is of them")
        choices.unmask = choices.unmask | edited_positions(group, choices.token_ids, choices.confidences)
        return choices

    def conclude(self, span: Span, choices: HostChoices, i: int) -> StepOutcome:
        if span.phase is Phase.DENOISE and _edits(span.seq):
            return edit_outcome(span, choices, i)
        return super().conclude(span, choices, i)


def _edits(seq: Sequence) -> bool:
    return seq.request.decoding.edit_threshold is not None


def edited_positions(group: StepGroup, token_ids: torch.Tensor, confidences: torch.Tensor) -> torch.Tensor:
    """[n, r] bool: the unmasked, unsettled tokens that give way. token_ids, confidences: [n, r], what the step found.

    The rows of logits of a span are those of its whole block.
    """
    device, seqs = token_ids.device, [span.seq for span in group.spans]
    current = to_device([unsettled_ids(block_of(span)) for span in group.spans], device)
    limits = [seq.request.decoding.edit_threshold for seq in seqs]
    thresholds = to_device([math.inf if limit is None else limit for limit in limits], device, confidences.dtype)
    return (current >= 0) & (token_ids != current) & (confidences > thresholds[:, None])


def edit_outcome(span: Span, choices: HostChoices, i: int) -> StepOutcome:
    """Writes what was unmasked and edited into the block. Its tokens settle once it is refined no further."""
    seq, block = span.seq, refined_block(span)
    if block is None or not choices.finite[i]:
        return StepOutcome(span, finite=choices.finite[i])
    outcome = StepOutcome(span)
    was_whole = True not in block.masked
    traced = (list(block.token_ids), list(block.masked)) if seq.request.trace_unmasking else None
    for j, takes in enumerate(choices.unmask[i]):
        if takes:
            outcome.edited += not block.masked[j]
            block.token_ids[j], block.masked[j] = choices.token_ids[i][j], False
            block.confidences[j] = choices.confidences[i][j]
            logprob = read_logprob(seq, choices, i, j)
            if logprob is not None:
                block.logprobs[j] = logprob
    block.steps += 1
    if traced is not None:
        note_unmasked(block, *traced)
    block.post_steps += was_whole
    stays = was_whole and not outcome.edited
    if stays or (True not in block.masked and block.post_steps >= seq.request.decoding.max_post_steps):
        new = range(block.num_settled, len(block))
        block.num_settled = len(block)
        outcome.token_ids = [block.token_ids[j] for j in new]
        if seq.request.sampling.logprobs is not None:
            outcome.logprobs = [block.logprobs[j] for j in new]
        if traced is not None:
            outcome.unmasking = read_unmasking(block, new)
    if stays:
        outcome.num_cached, outcome.closed_block_steps, seq.block = span.end, block.steps, None
    return outcome
