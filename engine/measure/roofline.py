"""What a pass must cost at least: the bytes it has to move and the operations it has to do. Pure counting, no torch.

A pass takes no less time than its bytes over the device's bandwidth, nor than its operations over the device's matrix
rate: the roofline model (Williams, Waterman and Patterson 2009). Counted is what no implementation can avoid: every
weight in use read once, the KV that earlier passes wrote read once, the KV of the query tokens written once; the matrix
products, and the scores and weighted sums of attention. Not counted is what can stay in registers and caches:
activations, logits, and KV read back by the pass that wrote it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from engine.batch import BatchPlan, KVLimits
    from engine.models.decoder import DecoderConfig
    from engine.sequence import Sequence


class DeviceSpeed(NamedTuple):
    """What a device can do at best; see engine.measure.device_speed."""

    bandwidth: float
    """Bytes a second."""
    rate: float
    """Floating-point operations a second in matrix products of the model's dtype; a multiply-add is two."""


class Work(NamedTuple):
    """What something has to move and to do."""

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
    """All of a pass that its least cost depends on. Every field is additive over spans."""

    tokens: int = 0
    """Query tokens."""
    drafting: int = 0
    """Of them, those in drafting spans: a draft adapter applies to these."""
    logit_rows: int = 0
    cached: int = 0
    """KV positions, over all sequences, that the pass sees and earlier passes have written."""
    pairs: int = 0
    """(query token, KV position it sees)"""

    @classmethod
    def of(cls, plan: BatchPlan) -> PassShape:
        """The shape of a plan. O(spans)."""
        tokens = drafting = logit_rows = pairs = 0
        first: dict[Sequence, int] = {}
        for group in plan.groups:
            before = tokens
            for span in group.spans:
                length, start = len(span.token_ids), span.start
                tokens += length
                pairs += visible_pairs(length, start, span.limits)
                # Of a shared pass's two spans the first one writes what the second one sees.
                first[span.seq] = min(start, first.get(span.seq, start))
            logit_rows += len(group.spans) * group.num_logits
            if group.phase == "draft":
                drafting += tokens - before
        return cls(tokens, drafting, logit_rows, sum(first.values()), pairs)

    def times(self, count: int) -> PassShape:
        """The shape of `count` such passes packed into one."""
        return PassShape(
            self.tokens * count, self.drafting * count, self.logit_rows * count, self.cached * count, self.pairs * count
        )


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


class WorkCounter:
    """Counts the work of passes of one model."""

    def __init__(self, config: DecoderConfig, itemsize: int, adapter_rank: int = 0) -> None:
        """itemsize: bytes an element of weights and KV. adapter_rank: of the draft LoRA on o_proj; 0: there is none."""
        hidden, layers, q_dim, kv_dim = config.hidden_size, config.num_layers, config.q_dim, config.kv_dim
        qkv_dim = q_dim + 2 * kv_dim
        self._itemsize = itemsize
        self._hidden = hidden
        self._matrices = layers * (hidden * (qkv_dim + q_dim) + 3 * hidden * config.intermediate_size)
        self._biases = layers * qkv_dim if config.qkv_bias else 0
        self._adapter = layers * adapter_rank * (q_dim + hidden)
        self._norms = layers * (2 * hidden + (2 * config.head_dim if config.qk_norm else 0)) + hidden
        self._head = config.vocab_size * hidden
        self._kv = 2 * layers * kv_dim
        self._attention = 4 * layers * q_dim

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights that a pass with logits reads."""
        return (self._matrices + self._biases + self._norms + self._head) * self._itemsize

    @property
    def kv_bytes(self) -> int:
        """Bytes of K and V that one position takes over all layers."""
        return self._kv * self._itemsize

    def count(self, shape: PassShape) -> PassWork:
        """The work of a pass of this shape; none at all without query tokens."""
        if not shape.tokens:
            return PassWork(Work(), Work(), Work(), Work())
        size = self._itemsize
        adapter = self._adapter if shape.drafting else 0
        return PassWork(
            projections=Work(
                (self._matrices + self._biases + adapter) * size,
                2 * (shape.tokens * self._matrices + shape.drafting * self._adapter),
            ),
            attention=Work((shape.cached + shape.tokens) * self._kv * size, shape.pairs * self._attention),
            norms=Work((self._norms + shape.tokens * self._hidden) * size),
            head=Work(self._head * size if shape.logit_rows else 0, 2 * shape.logit_rows * self._head),
        )
