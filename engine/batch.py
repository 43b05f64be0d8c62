"""The plan of one pass: its spans, its step groups, and which of them are contiguous."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

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
    rides: bool = False
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
