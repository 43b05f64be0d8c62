"""Results of a step: a group's choices on the device, the same on the host, and what they mean for each sequence."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from engine.batch import Span, StepGroup
from engine.device.transfer import to_device
from engine.events import TokenLogprob, TokenUnmasking
from engine.sampling.chosen import Chosen
from engine.sampling.logprobs import listed_log_probabilities, top_log_probabilities, widened
from engine.sequence import Sequence

STEP_FAILED = "The engine failed while it ran this request."


@dataclass(slots=True)
class Choices:
    """A step group's choices on the device; n spans, r logit rows, k alternatives. Fields a step lacks are None."""

    token_ids: torch.Tensor
    """[n, r] int64; -1 where a grammar leaves nothing to choose."""
    finite: torch.Tensor
    """[n] bool"""
    confidences: torch.Tensor | None = None
    """[n, r]: softmax probability of each chosen token."""
    unmask: torch.Tensor | None = None
    """[n, r] bool: positions that take their chosen token in this step; unmasked ones, too, in a model that edits."""
    remask: torch.Tensor | None = None
    """[n, r] bool: positions that become masks again. None: the unmasking rule never does that."""
    canvas: torch.Tensor | None = None
    """[n, r] int64: what the next step of a canvas of random tokens reads."""
    certain: torch.Tensor | None = None
    """[n] bool: the distributions of such a canvas leave next to nothing open."""
    accepted: torch.Tensor | None = None
    """[n] int64: draft tokens accepted by verification."""
    logprobs: torch.Tensor | None = None
    """[n, r]: natural-log probability of each chosen token."""
    top_ids: torch.Tensor | None = None
    """[n, r, k] int64: the likeliest tokens. Of a draft under a grammar: the likeliest choices, best first."""
    top_logprobs: torch.Tensor | None = None
    """[n, r, k]"""
    listed_logprobs: torch.Tensor | None = None
    """[n, r, k]: natural-log probabilities of the tokens that each span's request lists; where it lists fewer, the rest
    means nothing."""
    candidate_rows: torch.Tensor | None = None
    """[n] int64: index among the b spans that denoise under a grammar; -1 for any other."""
    candidate_ids: torch.Tensor | None = None
    """[b, r, k] int64: the likeliest choices, best first."""
    candidate_logprobs: torch.Tensor | None = None
    """[b, r, k]"""
    prompt_logprobs: torch.Tensor | None = None
    """[n, p]: natural-log probability of the prompt's own next token at each of p rows."""
    prompt_ranks: torch.Tensor | None = None
    """[n, p] int64: how many tokens are at least as likely as that one."""
    prompt_top_ids: torch.Tensor | None = None
    """[n, p, k] int64: the likeliest tokens at those rows."""
    prompt_top_logprobs: torch.Tensor | None = None
    """[n, p, k]"""


@dataclass(slots=True)
class HostChoices:
    """Choices as nested lists on the host. Fields a step lacks are empty."""

    token_ids: list[list[int]] = field(default_factory=list)
    finite: list[bool] = field(default_factory=list)
    confidences: list[list[float]] = field(default_factory=list)
    unmask: list[list[bool]] = field(default_factory=list)
    remask: list[list[bool]] = field(default_factory=list)
    canvas: list[list[int]] = field(default_factory=list)
    certain: list[bool] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    logprobs: list[list[float]] = field(default_factory=list)
    top_ids: list[list[list[int]]] = field(default_factory=list)
    top_logprobs: list[list[list[float]]] = field(default_factory=list)
    listed_logprobs: list[list[list[float]]] = field(default_factory=list)
    candidate_rows: list[int] = field(default_factory=list)
    candidate_ids: list[list[list[int]]] = field(default_factory=list)
    candidate_logprobs: list[list[list[float]]] = field(default_factory=list)
    prompt_logprobs: list[list[float]] = field(default_factory=list)
    prompt_ranks: list[list[int]] = field(default_factory=list)
    prompt_top_ids: list[list[list[int]]] = field(default_factory=list)
    prompt_top_logprobs: list[list[list[float]]] = field(default_factory=list)


@dataclass(slots=True)
class StepOutcome:
    """The effect of one span's step on its sequence. engine.scheduling.outcome applies it."""

    span: Span
    token_ids: list[int] = field(default_factory=list)
    """Tokens that settled, in order. They are cut at an end token or at `max_tokens` when the outcome is applied."""
    logprobs: list[TokenLogprob] | None = None
    unmasking: list[TokenUnmasking] | None = None
    """Of the settled tokens, where the request asks for it. None too where a causal pass chose them."""
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
    predicted: bool = False
    """Those drafts were taken from the request's prediction."""
    closed_block_steps: int | None = None
    """Denoising steps of the block this step closed, if it closed one."""
    edited: int = 0
    """Unmasked tokens that the step replaced."""
    exhausted: bool = False
    """The answer is a whole text of its grammar and nothing may follow, not even an end token: it ends here."""


def to_host(choices: list[Choices | None]) -> list[HostChoices]:
    """Copies the choices of all groups of a pass to the host: the step's one device-to-host copy."""
    tensors = [
        (i, name, tensor)
        for i, group in enumerate(choices)
        if group is not None
        for name in Choices.__slots__
        if (tensor := getattr(group, name)) is not None
    ]
    if tensors and tensors[0][2].device.type != "cpu":
        # Widest element first, so that every tensor stays aligned in the one byte buffer.
        tensors.sort(key=lambda item: -item[2].element_size())
        flat = torch.cat([tensor.reshape(-1).view(torch.uint8) for _, _, tensor in tensors]).cpu()
        offset, copied = 0, []
        for i, name, tensor in tensors:
            size = tensor.numel() * tensor.element_size()
            copied.append((i, name, flat[offset : offset + size].view(tensor.dtype).view(tensor.shape)))
            offset += size
        tensors = copied
    host = [HostChoices() for _ in choices]
    for i, name, tensor in tensors:
        setattr(host[i], name, tensor.tolist())
    return host


def with_logprobs(choices: Choices, chosen: Chosen, group: StepGroup) -> Choices:
    """Adds log-probabilities where a request of the group asked for them: of the distribution before temperature."""
    wanted = [span.seq.request.sampling.logprobs for span in group.spans]
    if all(count is None for count in wanted):
        return choices
    choices.logprobs = chosen.log_probabilities()
    most = max(count or 0 for count in wanted)
    if most:
        choices.top_ids, choices.top_logprobs = top_log_probabilities(widened(chosen.logits), most)
    listed = [span.seq.request.sampling.logprob_token_ids for span in group.spans]
    if any(listed):
        longest = max(map(len, listed))
        ids = to_device([[*own, *[0] * (longest - len(own))] for own in listed], chosen.logits.device)
        choices.listed_logprobs = listed_log_probabilities(widened(chosen.logits), ids)
    return choices


def read_logprob(seq: Sequence, choices: HostChoices, i: int, row: int) -> TokenLogprob | None:
    """The log-probabilities of row `row` of span i, if its request asked for them."""
    sampling = seq.request.sampling
    count, listed = sampling.logprobs, sampling.logprob_token_ids
    if count is None:
        return None
    top: list[tuple[int, float]] = []
    if listed:
        pairs = zip(listed, choices.listed_logprobs[i][row][: len(listed)], strict=True)
        top = sorted(pairs, key=lambda pair: -pair[1])
    elif count:
        top = list(zip(choices.top_ids[i][row][:count], choices.top_logprobs[i][row][:count], strict=True))
    return TokenLogprob(choices.token_ids[i][row], choices.logprobs[i][row], top)
