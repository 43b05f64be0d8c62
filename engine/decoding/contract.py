"""The contract of a decoding policy, and what every policy shares.

A policy never runs the model. It says which span a sequence needs next (`plan`), turns a step group's logits into
choices (`decide`: vectorised tensor arithmetic over the whole group, nothing leaves the device), and, once the choices
of all groups have been copied to the host in one go, says what they mean for each sequence (`conclude`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from engine.batch import Phase, Span, StepGroup
from engine.device.transfer import to_device
from engine.events import TokenLogprob
from engine.sampling.sampler import Chosen, Sampler, widened
from engine.sequence import Block, Sequence


@dataclass(slots=True)
class Choices:
    """A step group's decisions on the device; n spans, r logit rows, k alternatives. Fields a policy lacks are None."""

    token_ids: torch.Tensor
    """[n, r] int64; -1 where a grammar leaves nothing to choose."""
    finite: torch.Tensor
    """[n] bool"""
    confidences: torch.Tensor | None = None
    """[n, r]: softmax probability of each chosen token."""
    unmask: torch.Tensor | None = None
    """[n, r] bool: positions this step settles."""
    accepted: torch.Tensor | None = None
    """[n] int64: draft tokens accepted by verification."""
    logprobs: torch.Tensor | None = None
    """[n, r]: natural-log probability of each chosen token."""
    top_ids: torch.Tensor | None = None
    """[n, r, k] int64: the likeliest tokens; of a draft under a grammar, what else it might have been."""
    top_logprobs: torch.Tensor | None = None
    """[n, r, k]"""
    prompt_logprobs: torch.Tensor | None = None
    """[n, p]: of the prompt's own next tokens, at each of p rows; the same for the likeliest ones there:"""
    prompt_top_ids: torch.Tensor | None = None
    """[n, p, k] int64"""
    prompt_top_logprobs: torch.Tensor | None = None
    """[n, p, k]"""


HostChoices = dict[str, Any]
"""The fields of Choices that are set, as nested lists."""


@dataclass(slots=True)
class StepOutcome:
    """What one span's step means for its sequence. The scheduler applies it."""

    span: Span
    token_ids: list[int] = field(default_factory=list)
    """Tokens that settled, in order; the scheduler cuts them at an end token or at `max_tokens`."""
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    """Of prompt tokens, in order."""
    num_cached: int | None = None
    """New length of the valid KV prefix; None: unchanged."""
    error: str | None = None
    """The step failed for this sequence alone; nothing else in the outcome counts."""
    finite: bool = True
    drafted: int = 0
    """Draft tokens put to verification in this step."""
    accepted: int | None = None
    """Of them, those accepted; None outside verification."""
    closed_block_steps: int | None = None
    """Denoising steps of the block this step closed, if it closed one."""
    exhausted: bool = False
    """The answer is a whole text of its grammar and nothing may follow, not even an end token: it ends here."""


class DecodingPolicy(ABC):
    """One way to decode. Stateless: the state of a sequence is in the Sequence and its Block."""

    name: str

    def __init__(self, sampler: Sampler, mask_token_id: int, device: torch.device) -> None:
        self.sampler = sampler
        self.mask_token_id = mask_token_id
        self.device = device

    def begin(self, seq: Sequence) -> None:  # noqa: B027 - most policies need no preparation
        """Prepares a fresh sequence's state, before its prefill."""

    @abstractmethod
    def plan(self, seq: Sequence, num_running: int) -> list[Span]:
        """The spans of the next pass for a prefilled sequence; two only in a shared pass. Repeatable: changes nothing
        that a second call would not change to the same value."""

    @abstractmethod
    def decide(self, group: StepGroup, logits: torch.Tensor) -> Choices:
        """Chooses for every span of the group. logits: [n, num_logits, V], free to be overwritten."""

    @abstractmethod
    def conclude(self, span: Span, choices: HostChoices, i: int) -> StepOutcome:
        """Reads row i of the group's choices: updates the sequence's block, says what settled and what is cached."""


def block_length_of(seq: Sequence) -> int:
    """Length of the next diffusion canvas [seed, masks]: never wider than what `max_tokens` leaves."""
    return min(seq.request.decoding.block_length, seq.num_remaining + 1)


def block_span(seq: Sequence, block: Block, phase: Phase, mask_token_id: int) -> Span:
    """A bidirectional span over a canvas: masked positions carry the mask id, every token sees the whole canvas."""
    ids = [mask_token_id if masked else token for token, masked in zip(block.token_ids, block.masked, strict=True)]
    return Span(seq, phase, block.start, ids, kv_limit=block.end, num_logits=len(ids))


def refined_block(span: Span) -> Block | None:
    """The block a bidirectional span refines: the open one, or the one a shared pass opens beside it.

    None where a shared pass's verification has just rejected it.
    """
    for block in (span.seq.block, span.seq.next_block):
        if block is not None and block.start == span.start:
            return block
    return None


def next_token_rows(group: StepGroup, device: torch.device) -> torch.Tensor:
    """[n, r] int64: absolute positions of the tokens that a causal group's logit rows choose (row p chooses p + 1)."""
    return same_rows(group, device, 1)


def same_rows(group: StepGroup, device: torch.device, shift: int = 0) -> torch.Tensor:
    """[n, r] int64: absolute positions of a group's logit rows themselves, plus `shift`."""
    starts = np.array([span.start + span.logit_start + shift for span in group.spans], dtype=np.int64)
    return to_device(starts[:, None] + np.arange(group.num_logits), device)


def with_logprobs(choices: Choices, chosen: Chosen, group: StepGroup) -> Choices:
    """Adds log-probabilities where a request of the group asked for them: of the distribution before temperature."""
    wanted = [span.seq.request.sampling.logprobs for span in group.spans]
    if all(count is None for count in wanted):
        return choices
    choices.logprobs = chosen.log_probabilities()
    most = max(count or 0 for count in wanted)
    if most:
        logits = widened(chosen.logits)
        top, choices.top_ids = logits.topk(min(most, logits.shape[-1]), dim=-1)
        choices.top_logprobs = top - logits.logsumexp(dim=-1, keepdim=True)
    return choices


def read_logprob(seq: Sequence, choices: HostChoices, i: int, row: int) -> TokenLogprob | None:
    """The log-probabilities of row `row` of span i, if its request asked for them."""
    count = seq.request.sampling.logprobs
    if count is None:
        return None
    top: list[tuple[int, float]] = []
    if count:
        ids, values = choices["top_ids"][i][row][:count], choices["top_logprobs"][i][row][:count]
        top = list(zip(ids, values, strict=True))
    return TokenLogprob(choices["token_ids"][i][row], choices["logprobs"][i][row], top)


def next_token_choices(sampler: Sampler, group: StepGroup, logits: torch.Tensor) -> Choices:
    """One causal choice a span: AR decoding, the seed after a prefill, the seed after a commit."""
    seqs = [span.seq for span in group.spans]
    positions = None if all(seq.plain for seq in seqs) else next_token_rows(group, logits.device)
    chosen = sampler.choose(logits, seqs, positions, walks=[[]] * len(seqs))
    return with_logprobs(Choices(chosen.token_ids, chosen.finite), chosen, group)


def next_token_outcome(span: Span, choices: HostChoices, i: int) -> StepOutcome:
    """The outcome of `next_token_choices`: the span is cached and one more token has settled."""
    if choices["token_ids"][i][0] < 0:
        return exhausted_outcome(span, choices["finite"][i])
    logprob = read_logprob(span.seq, choices, i, 0)
    return StepOutcome(
        span,
        token_ids=[choices["token_ids"][i][0]],
        logprobs=None if logprob is None else [logprob],
        num_cached=span.end,
        finite=choices["finite"][i],
    )


def exhausted_outcome(span: Span, finite: bool) -> StepOutcome:
    """No token may follow what has settled. That ends the answer: well if it is a whole text of its grammar."""
    state = span.seq.grammar
    if state is None:
        raise RuntimeError("only a grammar can leave nothing to choose")
    if state.is_complete(span.seq):
        return StepOutcome(span, finite=finite, exhausted=True)
    return StepOutcome(span, finite=finite, error=state.obstacle if finite else None)


def to_host(choices: list[Choices | None]) -> list[HostChoices]:
    """Copies the choices of all groups of a pass to the host as nested lists: the step's one device-to-host copy."""
    fields = [
        (i, name, tensor)
        for i, group in enumerate(choices)
        if group is not None
        for name in Choices.__slots__
        if (tensor := getattr(group, name)) is not None
    ]
    host: list[HostChoices] = [{} for _ in choices]
    if fields and fields[0][2].device.type != "cpu":
        # Widest element first, so that every tensor stays aligned in the one byte buffer.
        fields.sort(key=lambda item: -item[2].element_size())
        flat = torch.cat([tensor.reshape(-1).view(torch.uint8) for _, _, tensor in fields]).cpu()
        offset, copied = 0, []
        for i, name, tensor in fields:
            size = tensor.numel() * tensor.element_size()
            copied.append((i, name, flat[offset : offset + size].view(tensor.dtype).view(tensor.shape)))
            offset += size
        fields = copied
    for i, name, tensor in fields:
        host[i][name] = tensor.tolist()
    return host
