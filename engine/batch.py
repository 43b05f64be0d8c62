"""The plan of one pass: its spans, the KV positions that they see, and its step groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from engine.sequence import Sequence


class Phase(StrEnum):
    """The kind of work a span does. All phases see causally, but DENOISE and DRAFT, which see a whole block.

    Where context is encoded by blocks, PREFILL and COMMIT see to the end of each token's own block; where masks draft
    causally, DRAFT does, too.
    """

    PREFILL = "prefill"
    """Encodes context."""
    DECODE = "decode"
    """Encodes the anchor and chooses the token after it."""
    DENOISE = "denoise"
    """Refines a block."""
    COMMIT = "commit"
    """Encodes a finished block as context, which makes its KV valid."""
    DRAFT = "draft"
    """Fills a block with tokens to be verified."""
    VERIFY = "verify"
    """Encodes a drafted block causally and chooses the token after each of its prefixes."""


class KVLimits(NamedTuple):
    """The KV positions that the tokens of a span see: the token at position p sees [0, limit(p)).

    limit(p) is the larger of `end` and the end of p's block. Blocks have `block_length` positions and are counted from
    position `origin`; with blocks of one position the second part is p + 1.
    """

    end: int = 0
    block_length: int = 1
    origin: int = 0

    def at(self, position: int) -> int:
        """The limit of the token at `position`."""
        return max(self.end, position + 1 if self.block_length == 1 else self.block_end(position))

    def block_end(self, position: int) -> int:
        """End of the block that holds `position`."""
        return self.origin + ((position - self.origin) // self.block_length + 1) * self.block_length

    @classmethod
    def up_to(cls, end: int) -> KVLimits:
        """Every token sees [0, end), which holds all of them."""
        return cls(end)

    @classmethod
    def block_ends(cls, block_length: int, origin: int = 0) -> KVLimits:
        """Every token sees to the end of its own block."""
        return cls(0, block_length, origin)


CAUSAL = KVLimits()
"""The token at position p sees [0, p + 1)."""


@dataclass(slots=True, eq=False)
class Span:
    """One sequence's query tokens in this pass: positions [start, start + len(token_ids))."""

    seq: Sequence
    phase: Phase
    start: int
    token_ids: list[int]
    limits: KVLimits
    num_logits: int
    """Logits are needed for `num_logits` tokens from `logit_start` on."""
    logit_start: int = 0
    """Index within the span."""
    second: bool = False
    """The second span of a shared pass: it counts for no pass of its own."""
    optional: bool = False
    """May be left out of the pass without changing any answer."""
    step: int = -1
    """Of a canvas of random tokens: the denoising steps it has had. -1: it is none."""

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)

    @property
    def kv_end(self) -> int:
        """Most KV positions any token of the span sees; pages must cover them."""
        end, limits = self.start + len(self.token_ids), self.limits
        if limits.block_length > 1:
            return limits.at(end - 1)
        return end if end > limits.end else limits.end


@dataclass(slots=True, eq=False)
class StepGroup:
    """Spans that take the same step, contiguous in the batch: one mode, one phase, one count of logit rows."""

    mode: str
    """The spans' mode; empty in prefill, the same in every mode, and in passes that are only timed."""
    phase: Phase
    num_logits: int
    spans: list[Span] = field(default_factory=list)

    def logit_positions(self, shift: int = 0) -> np.ndarray:
        """[n, num_logits] int64: absolute positions of the n spans' logit rows, plus `shift`."""
        starts = np.array([span.start + span.logit_start + shift for span in self.spans], dtype=np.int64)
        positions: np.ndarray = starts[:, None] + np.arange(self.num_logits)
        return positions


@dataclass(slots=True, eq=False)
class BatchPlan:
    """The groups of one pass, in batch order."""

    groups: list[StepGroup]

    def only(self, seq: Sequence) -> BatchPlan:
        """The same plan for one of its sequences alone."""
        groups = [
            StepGroup(g.mode, g.phase, g.num_logits, [span for span in g.spans if span.seq is seq]) for g in self.groups
        ]
        return BatchPlan([group for group in groups if group.spans])

    @property
    def spans(self) -> Iterator[Span]:
        for group in self.groups:
            yield from group.spans

    @property
    def num_tokens(self) -> int:
        return sum(len(span.token_ids) for span in self.spans)


def block_ends(spans: list[Span], lengths: list[int], positions: np.ndarray) -> np.ndarray:
    """[T] int64: the end of each query token's block. lengths: tokens of each span; positions: [T]."""
    blocks = np.array([span.limits[1:] for span in spans], dtype=np.int64).T.repeat(lengths, axis=1)
    size, origin = blocks
    ends: np.ndarray = origin + ((positions - origin) // size + 1) * size
    return ends


CANVAS_SLOTS = 2
"""Slots that the device keeps for the canvas of a page-table row; see `canvas_slot`."""


def canvas_slot(row: int, step: int) -> int:
    """Where the device keeps what a canvas of random tokens is told at a step.

    Two steps in turn have two slots, so that a pass may be repeated: it reads one and writes the other.
    """
    return CANVAS_SLOTS * row + step % CANVAS_SLOTS
