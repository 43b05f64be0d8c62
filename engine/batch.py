"""What one pass runs: spans, step groups, the plan, and the plan packed for the host and for the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
import torch

from engine.device.transfer import to_device

if TYPE_CHECKING:
    from engine.decoding.contract import DecodingPolicy
    from engine.sequence import Sequence


class Phase(StrEnum):
    """What a span does. Causal phases see [0, p + 1); DENOISE and DRAFT see the whole canvas."""

    PREFILL = "prefill"
    DECODE = "decode"
    DENOISE = "denoise"
    COMMIT = "commit"
    DRAFT = "draft"
    VERIFY = "verify"


@dataclass(slots=True, eq=False)
class Span:
    """One sequence's query tokens in this pass: positions [start, start + len(token_ids))."""

    seq: Sequence
    phase: Phase
    start: int
    token_ids: list[int]
    kv_limit: int | None
    """None: causal, the token at p sees [0, p + 1). Else every token of the span sees [0, kv_limit)."""
    num_logits: int
    """Logits are needed for `num_logits` tokens from `logit_start` on."""
    logit_start: int = 0
    """Index within the span."""
    second: bool = False
    """The second span of a shared pass."""
    optional: bool = False
    """May be left out of the pass without changing any answer."""

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)

    @property
    def kv_end(self) -> int:
        """Most KV positions any token of the span sees; pages must cover them."""
        return self.end if self.kv_limit is None else self.kv_limit


@dataclass(slots=True, eq=False)
class StepGroup:
    """Spans that take the same step, contiguous in the batch: one policy, one phase, one count of logit rows."""

    policy: DecodingPolicy
    phase: Phase
    num_logits: int
    spans: list[Span] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class BatchPlan:
    """The groups of one pass, in batch order."""

    groups: list[StepGroup]

    def only(self, seq: Sequence) -> BatchPlan:
        """The same plan for one of its sequences alone."""
        groups = [
            StepGroup(g.policy, g.phase, g.num_logits, [span for span in g.spans if span.seq is seq])
            for g in self.groups
        ]
        return BatchPlan([group for group in groups if group.spans])

    @property
    def spans(self) -> Iterator[Span]:
        for group in self.groups:
            yield from group.spans

    @property
    def num_tokens(self) -> int:
        return sum(len(span.token_ids) for span in self.spans)


@dataclass(slots=True, eq=False)
class PackedPass:
    """A BatchPlan as arrays on the host. T query tokens, S spans, R logit rows."""

    inputs: np.ndarray
    """[4, T] int64: token ids, positions, kv limits, slots; see ForwardBatch."""
    logit_rows: np.ndarray
    """[R] int64: indices into T."""
    span_offsets: list[int]
    """S + 1 offsets into T."""
    span_rows: list[int]
    """S page-table rows."""
    span_kv_ends: list[int]
    """S: most KV positions any token of the span sees."""
    drafting: np.ndarray | None
    """[T] bool: where a draft adapter applies. None: nowhere."""

    def to(self, device: torch.device, dtype: torch.dtype) -> ForwardBatch:
        """On the device, in one transfer (a pass that drafts with an adapter: two). dtype: the model's."""
        token_ids, positions, kv_limits, slots = to_device(self.inputs, device).unbind(0)
        draft_tokens = None
        if self.drafting is not None:
            draft_tokens = to_device(self.drafting, device).to(dtype)[:, None]
        return ForwardBatch(
            token_ids=token_ids,
            positions=positions,
            kv_limits=kv_limits,
            slots=slots,
            span_offsets=self.span_offsets,
            span_rows=self.span_rows,
            span_kv_ends=self.span_kv_ends,
            host_kv_limits=self.inputs[2],
            draft_tokens=draft_tokens,
        )


@dataclass(slots=True, eq=False)
class ForwardBatch:
    """A pass as packed tensors on the device: what the decoder and its attention read. T query tokens, S spans."""

    token_ids: torch.Tensor
    """[T] int64"""
    positions: torch.Tensor
    """[T] int64, absolute"""
    kv_limits: torch.Tensor
    """[T] int64: the token sees KV positions [0, kv_limit) of its own sequence."""
    slots: torch.Tensor
    """[T] int64: where in the flat KV pool each token's K and V are written."""
    span_offsets: list[int]
    """S + 1 offsets into T."""
    span_rows: list[int]
    """S page-table rows."""
    span_kv_ends: list[int]
    """S: most KV positions any token of the span sees."""
    host_kv_limits: np.ndarray
    """[T] int64: kv_limits where the host finds them."""
    draft_tokens: torch.Tensor | None = None
    """[T, 1] of the model's dtype: 1 where a draft adapter applies, 0 elsewhere. None: nowhere."""
