"""Counts the least that a pass must cost: the bytes it has to move and the operations it has to do.

A pass takes no less time than its bytes over the device's bandwidth, nor than its operations over the device's matrix
rate: the roofline model (Williams, Waterman and Patterson 2009). Counted is what no implementation can avoid: every
weight in use read once, of experts those that the tokens are expected to touch, the KV that earlier passes wrote read
once, the KV of the query tokens written once; the matrix products, and the scores and weighted sums of attention. Not
counted is what can stay in registers and caches: activations, logits, and KV read back by the pass that wrote it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from engine.batch import BatchPlan, KVLimits
from engine.models.decoder import Decoder
from engine.sequence import Sequence


class DeviceSpeed(NamedTuple):
    """A device's speed at its best; see engine.measure.device_speed."""

    bandwidth: float
    """Bytes a second."""
    rate: float
    """Operations a second in matrix products of the model's dtype, or of its quantized weights if those are faster; a
    multiply-add is two."""


class Work(NamedTuple):
    """Bytes to move and operations to do."""

    bytes: int = 0
    operations: int = 0

    def seconds(self, speed: DeviceSpeed) -> float:
        """Least time on a device of that speed, moving and computing at once."""
        return max(self.bytes / speed.bandwidth, self.operations / speed.rate)


class PassWork(NamedTuple):
    """A pass's work by part of the model."""

    projections: Work
    """The matrix products of the layers, a draft adapter's included."""
    attention: Work
    """Scores and weighted sums; reading and writing KV."""
    norms: Work
    """Norm weights and the embedding rows of the query tokens."""
    head: Work

    @property
    def total(self) -> Work:
        """The whole pass. Its least time is that of the sums, not the sum of the parts' least times."""
        return Work(sum(part.bytes for part in self), sum(part.operations for part in self))


@dataclass(slots=True)
class PassShape:
    """The figures of a pass that its least cost depends on. Every field is additive over spans."""

    tokens: int = 0
    """Query tokens."""
    drafting: int = 0
    """Of them, those in drafting spans: a draft adapter applies to these."""
    logit_rows: int = 0
    cached: int = 0
    """KV positions, over all sequences, that the pass sees and earlier passes have written."""
    pairs: int = 0
    """Pairs of a query token and a KV position that it sees."""
    window_cached: int = 0
    """`cached` and `pairs` in layers that attend by a window; so is the next one."""
    window_pairs: int = 0

    @classmethod
    def of(cls, plan: BatchPlan, window: int = 0) -> PassShape:
        """The shape of a plan. O(spans). window: of the layers that have one; 0: none has."""
        tokens = drafting = logit_rows = pairs = window_pairs = 0
        first: dict[Sequence, int] = {}
        for group in plan.groups:
            before = tokens
            for span in group.spans:
                length, start = len(span.token_ids), span.start
                tokens += length
                pairs += visible_pairs(length, start, span.limits)
                if window:
                    window_pairs += windowed_pairs(length, start, span.limits, window)
                # Of a shared pass's two spans the first one writes what the second one sees.
                first[span.seq] = min(start, first.get(span.seq, start))
            logit_rows += len(group.spans) * group.num_logits
            if group.phase == "draft":
                drafting += tokens - before
        seen = sum(min(start, window - 1) for start in first.values()) if window else 0
        return cls(tokens, drafting, logit_rows, sum(first.values()), pairs, seen, window_pairs)

    def times(self, count: int) -> PassShape:
        """The shape of `count` such passes packed into one."""
        return PassShape(
            self.tokens * count, self.drafting * count, self.logit_rows * count, self.cached * count,
            self.pairs * count, self.window_cached * count, self.window_pairs * count,
        )  # fmt: skip


def visible_pairs(tokens: int, start: int, limits: KVLimits) -> int:
    """(query token, KV position) pairs of a span of `tokens` from position `start`. O(blocks) if it sees by blocks."""
    if limits.block_length > 1:
        pairs, at = 0, start
        while at < start + tokens:
            stop = min(limits.block_end(at), start + tokens)
            pairs += (stop - at) * limits.at(at)
            at = stop
        return pairs
    if limits.end:
        return tokens * limits.end
    return tokens * start + tokens * (tokens + 1) // 2


def windowed_pairs(tokens: int, start: int, limits: KVLimits, window: int) -> int:
    """`visible_pairs` in a layer with a window: that of a canvas is counted from its first position."""
    if limits.end:
        return tokens * (min(start, window - 1) + tokens)
    growing = min(max(window - start, 0), tokens)  # tokens that see everything before them
    return visible_pairs(growing, start, limits) + (tokens - growing) * window


class WorkCounter:
    """Counts the work of one model's passes. Each weight says its own bytes and operations."""

    def __init__(self, decoder: Decoder, kv_itemsize: int) -> None:
        """kv_itemsize: bytes an element of K and V."""
        config, layers = decoder.config, decoder.layers
        matrices = [matrix for layer in layers for matrix in layer.linears]
        narrow = [matrix for layer in decoder.draft_layers for matrix in layer.linears]
        adapters = [matrix for layer in layers for matrix in layer.adapter_linears]
        norms = [decoder.norm, *(norm for layer in layers for norm in layer.norms)]
        self._experts, self._draft_experts = (
            Work(sum(e.num_bytes for e in found), sum(e.operations for e in found))
            for found in (
                [layer.mlp.experts for layer in some if layer.mlp.experts is not None]
                for some in (layers, decoder.draft_layers)
            )
        )
        self._expert_config = config.experts
        self._matrices = Work(sum(m.num_bytes for m in matrices), sum(m.operations for m in matrices))
        self._draft_matrices = Work(sum(m.num_bytes for m in narrow), sum(m.operations for m in narrow))
        self._adapters = Work(sum(m.num_bytes for m in adapters), sum(m.operations for m in adapters))
        rows = decoder.row_linears
        self._head = Work(sum(m.num_bytes for m in rows), sum(m.operations for m in rows))
        self._norm_bytes = sum(norm.nbytes for norm in norms)
        self._embedding_bytes = config.hidden_size * decoder.embedding.element_size()
        kinds = config.attention_kinds
        self.window = next((kind.window for kind in kinds if kind.window is not None), 0)
        """Of the layers that attend by a window; 0: none does."""
        self._whole, self._windowed = (
            Work(
                2 * kv_itemsize * sum(len(kind.layers) * config.of_kind(kind).kv_dim for kind in some),
                4 * sum(len(kind.layers) * config.of_kind(kind).q_dim for kind in some),
            )
            for some in ([k for k in kinds if k.window is None], [k for k in kinds if k.window is not None])
        )
        self.kv_bytes = self._whole.bytes + self._windowed.bytes
        """Bytes of K and V that one position takes over all layers."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights that a pass with logits reads, if it touches every expert."""
        return self._matrices.bytes + self._experts.bytes + self._norm_bytes + self._head.bytes

    def count(self, shape: PassShape) -> PassWork:
        """The work of a pass of this shape; none at all without query tokens."""
        if not shape.tokens:
            return PassWork(Work(), Work(), Work(), Work())
        adapters, head = self._adapters, self._head
        only_drafts = shape.drafting == shape.tokens
        matrices = self._draft_matrices if only_drafts else self._matrices
        experts = self._touched(shape.tokens, self._draft_experts if only_drafts else self._experts)
        return PassWork(
            projections=Work(
                matrices.bytes + experts.bytes + (adapters.bytes if shape.drafting else 0),
                shape.tokens * matrices.operations + experts.operations + shape.drafting * adapters.operations,
            ),
            attention=self._attention(shape),
            norms=Work(self._norm_bytes + shape.tokens * self._embedding_bytes),
            head=Work(head.bytes if shape.logit_rows else 0, shape.logit_rows * head.operations),
        )

    def _attention(self, shape: PassShape) -> Work:
        """Bytes by position, operations by pair, of layers without a window and of those with one."""
        whole, windowed = self._whole, self._windowed
        return Work(
            (shape.cached + shape.tokens) * whole.bytes + (shape.window_cached + shape.tokens) * windowed.bytes,
            shape.pairs * whole.operations + shape.window_pairs * windowed.operations,
        )

    def _touched(self, tokens: int, experts: Work) -> Work:
        """What so many tokens read and compute of the experts: those that they are expected to touch."""
        if self._expert_config is None:
            return Work()
        return Work(round(experts.bytes * self._expert_config.expected_share(tokens)), tokens * experts.operations)
