"""Prefill: the phase that encodes a prompt, in chunks, before the sequence's policy can plan.

Also after a preemption, of everything that had settled. It is the same in every mode of a model, because settled text
is encoded alike, causally or by blocks, whatever the mode.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from engine.batch import CAUSAL, KVLimits, Phase, Span, StepGroup
from engine.decoding.causal_steps import next_token_choices, next_token_outcome
from engine.decoding.contract import DecodingPolicy, GroupStep
from engine.decoding.results import Choices, HostChoices, StepOutcome
from engine.device.transfer import to_device
from engine.events import TokenLogprob
from engine.sampling.divided import Logits, whole
from engine.sampling.logprobs import all_finite, log_probabilities, top_log_probabilities, widened
from engine.sampling.sampler import Sampler
from engine.sequence import Sequence

SCORED_CHUNK = 128
"""Most prompt tokens scored in one pass: each needs a row of logits, which no other part of a prompt does."""


class Prefill(GroupStep):
    """Chunks of context, and the step of a chunk that asks for logits."""

    def __init__(self, sampler: Sampler, policies: Mapping[str, DecodingPolicy], block_length: int = 1) -> None:
        """policies: by mode; they say how much of a sequence has to be cached, and whether it needs an anchor.

        block_length: of the blocks that context is encoded by, each of which has to be run whole. 1: it is causal.
        """
        self.sampler = sampler
        self.block_length = block_length
        self._limits = CAUSAL if block_length == 1 else KVLimits.block_ends(block_length)
        self._policies = policies

    def chunk(self, seq: Sequence, max_tokens: int) -> Span:
        """The next chunk, of whole blocks, at most `max_tokens` long: those are one block at least.

        Every token of a prompt that is scored needs a logit; of others only the last chunk's last one, and only if it
        chooses the anchor.
        """
        policy = self._policies[seq.mode]
        target = policy.cache_target(seq)
        if seq.scores_prompt:
            end = min(target, seq.num_cached + min(max_tokens, SCORED_CHUNK))
            first, num_logits = 0, end - seq.num_cached
        else:
            end = min(target, seq.num_cached + max_tokens // self.block_length * self.block_length)
            first, num_logits = end - seq.num_cached - 1, int(end == target and policy.needs_anchor(seq))
        return Span(
            seq, Phase.PREFILL, seq.num_cached, seq.token_ids[seq.num_cached : end], self._limits,
            num_logits=num_logits, logit_start=first,
        )  # fmt: skip

    def decide(self, group: StepGroup, logits: Logits) -> Choices:
        if not any(span.seq.scores_prompt for span in group.spans):
            return next_token_choices(self.sampler, group, logits)
        logits = whole(logits)
        finite = all_finite(logits)
        scores = score_prompts(group, widened(logits))
        last = StepGroup(group.mode, group.phase, 1, [_last_row(span) for span in group.spans])
        choices = next_token_choices(self.sampler, last, logits[:, -1:].clone())
        choices.finite = finite
        choices.prompt_logprobs, choices.prompt_ranks, choices.prompt_top_ids, choices.prompt_top_logprobs = scores
        return choices

    def conclude(self, span: Span, choices: HostChoices, i: int) -> StepOutcome:
        if not span.num_logits:
            return StepOutcome(span, num_cached=span.end)
        scored = read_scores(span, choices, i) if span.seq.scores_prompt else None
        policy = self._policies[span.seq.mode]
        if span.end == policy.cache_target(span.seq) and policy.needs_anchor(span.seq):
            outcome = next_token_outcome(span, choices, i)
        else:
            outcome = StepOutcome(span, num_cached=span.end, finite=choices.finite[i])
        outcome.prompt_logprobs = scored
        return outcome


def _last_row(span: Span) -> Span:
    """The span with its last logit alone."""
    return Span(
        span.seq, span.phase, span.start, span.token_ids, span.limits, num_logits=1,
        logit_start=len(span.token_ids) - 1,
    )  # fmt: skip


def score_prompts(
    group: StepGroup, logits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Log-probabilities and ranks, by the model's own distribution, of what follows each token of prompt chunks.

    logits: [n, p, V]. Returns [n, p] twice, and, where any request wants k of the likeliest tokens, [n, p, k] ids and
    log-probabilities. Rows after which the prompt says nothing hold figures of no meaning.
    """
    rows = logits.shape[1]
    following = [span.seq.token_ids[span.start + 1 : span.start + 1 + rows] for span in group.spans]
    targets = to_device([ids + [0] * (rows - len(ids)) for ids in following], logits.device)
    logprobs = log_probabilities(logits, targets)
    ranks = (logits >= logits.gather(-1, targets[..., None])).sum(dim=-1)
    most = max(span.seq.request.prompt_logprobs or 0 for span in group.spans)
    return (logprobs, ranks, *(top_log_probabilities(logits, most) if most else (None, None)))


def read_scores(span: Span, choices: HostChoices, i: int) -> list[TokenLogprob]:
    """The log-probabilities of span i that were not known yet; from now on they are."""
    seq, count = span.seq, span.seq.request.prompt_logprobs or 0
    found = []
    # After a preemption the prompt is run again from its beginning.
    for place in range(max(span.start + 1, seq.num_scored), min(span.end + 1, seq.num_prompt)):
        row = place - span.start - 1
        top: list[tuple[int, float]] = []
        if count:
            ids, values = choices.prompt_top_ids[i][row], choices.prompt_top_logprobs[i][row]
            top = list(zip(ids[:count], values[:count], strict=True))
        logprob, rank = choices.prompt_logprobs[i][row], choices.prompt_ranks[i][row]
        found.append(TokenLogprob(seq.token_ids[place], logprob, top, rank))
    seq.num_scored = max(seq.num_scored, min(span.end + 1, seq.num_prompt))
    return found
