"""Widths of speculation, chosen from measured costs of passes and from the recent acceptance of drafts.

Self-speculation is exact whatever is drafted and however much of a draft is verified, so every choice here is a matter
of speed alone. All of them maximise expected tokens a second.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

from engine.request import GREEDY_BELOW
from engine.sequence import Block, Sequence

EXPLORE_EVERY = 64
"""While plain AR looks best, one sequence in so many passes drafts all the same, so that acceptance keeps being
observed. More would cost every pass two further step groups."""

FORGETTING = 0.1
"""How fast what is known of a place fades while drafts do not reach it, next to how fast it changes when they do."""

VERIFY_STEP = 8
"""Verified lengths are multiples of this: sequences that verify equally many tokens share one step group."""


@dataclass(frozen=True)
class CostTable:
    """Measured seconds of a pass by query tokens a sequence (width) and sequences in the batch."""

    widths: tuple[int, ...]
    """Ascending, beginning with 1."""
    batches: tuple[int, ...]
    """Ascending, beginning with 1."""
    seconds: tuple[tuple[float, ...], ...]
    """seconds[i][j]: a causal pass of batches[j] spans of widths[i] tokens. Rows may end early."""
    context: int = 0
    """KV positions that each of those sequences had cached."""
    per_position: float = 0.0
    """Further seconds for every cached position more of a sequence."""
    per_pair: float = 0.0
    """Further seconds for every pair of such a position and a query token."""

    @classmethod
    def assumed(cls, max_width: int) -> CostTable:
        """A rough table where nothing was measured: a pass costs as much as 64 tokens do, and then by the token."""
        widths = tuple(1 << i for i in range(max_width.bit_length()) if 1 << i <= max_width)
        return cls(widths, (1, 2), tuple((64.0 + width, 64.0 + 2 * width) for width in widths))

    def lookup(self, width: int, batch: int, context: int | None = None) -> float:
        """Seconds of a pass whose sequences have `context` positions cached; None: as many as when it was measured.

        Linear between and beyond the measured widths and batches, and in the context.
        """
        further = 0 if context is None else context - self.context
        attention = further * batch * (self.per_position + width * self.per_pair)
        return max(self._measured(width, batch) + attention, 1e-9)

    def _measured(self, width: int, batch: int) -> float:
        i = min(max(bisect_right(self.widths, width) - 1, 0), max(len(self.widths) - 2, 0))
        low = self._at(i, batch)
        if self.widths[i] == width or len(self.widths) == 1:
            return low
        share = (width - self.widths[i]) / (self.widths[i + 1] - self.widths[i])
        return max(low + share * (self._at(i + 1, batch) - low), 1e-9)

    def _at(self, i: int, batch: int) -> float:
        row = self.seconds[i]
        if len(row) == 1:
            return row[0] * batch / self.batches[0]
        j = min(max(bisect_right(self.batches, batch) - 1, 0), len(row) - 2)
        low, high = self.batches[j], self.batches[j + 1]
        return max(row[j] + (row[j + 1] - row[j]) / (high - low) * (batch - low), 1e-9)


class AcceptanceEstimate:
    """How far drafts are accepted lately, by how far into the block: P(draft k is accepted, those before it were).

    Places that drafts have not reached, or not for long, are thought to be like the others: without that, a server that
    began with narrow blocks would never learn that wide ones pay.
    """

    def __init__(self, max_width: int, decay: float = 0.95, prior: float = 0.85) -> None:
        self._decay = decay
        self._overall = prior
        self._rates: list[float | None] = [None] * (max_width - 1)
        self._survival: list[float] | None = None
        self._tokens: list[float] = []

    def observe(self, drafted: int, accepted: int) -> None:
        """Takes in one verification of `drafted` tokens. Of what follows a rejection nothing is known."""
        new, drafted = 1.0 - self._decay, min(drafted, len(self._rates))
        for k in range(min(accepted + 1, drafted)):
            hit = 1.0 if k < accepted else 0.0
            rate = self._rates[k]
            rate = self._overall if rate is None else rate
            self._rates[k] = rate + new * (hit - rate)
            self._overall += new * (hit - self._overall)
        for k in range(drafted, len(self._rates)):
            rate = self._rates[k]
            if rate is not None:
                self._rates[k] = rate + new * FORGETTING * (self._overall - rate)
        self._survival = None

    @property
    def survival(self) -> list[float]:
        """P(drafts 1..k are all accepted), k = 1, 2, ..."""
        if self._survival is None:
            rates = (self._overall if rate is None else rate for rate in self._rates)
            self._survival = list(accumulate(rates, lambda a, b: a * b))
            self._tokens = list(accumulate(self._survival, initial=1.0))
        return self._survival

    def tokens_per_round(self, width: int) -> float:
        """Expected tokens a round emits: the accepted drafts and the bonus token."""
        longest = len(self.survival) + 1
        return self._tokens[min(width, longest) - 1]


class WidthController:
    """Decides widths for all speculating sequences of an engine."""

    def __init__(self, costs: CostTable, acceptance: AcceptanceEstimate) -> None:
        self.costs = costs
        self.acceptance = acceptance
        self._unexplored = 0

    def draft_width(self, num_running: int, limit: int, context: int | None = None) -> int:
        """Tokens of the next block, anchor included, up to `limit`; 1 is plain AR. A wider round is two passes.

        context: KV positions that the sequence has cached, taken for those of all.
        """
        widest, widest_rate = 1, 0.0
        for width in self.costs.widths:
            if 1 < width <= limit:
                rate = self.acceptance.tokens_per_round(width) / (2 * self.costs.lookup(width, num_running, context))
                if rate > widest_rate:
                    widest, widest_rate = width, rate
        if widest_rate * self.costs.lookup(1, num_running, context) >= 1.0:
            return widest
        self._unexplored += 1
        if self._unexplored < EXPLORE_EVERY * num_running:
            return 1
        self._unexplored = 0
        return widest

    def survival(self, seq: Sequence, block: Block) -> list[float]:
        """P(drafts 1..k are all accepted), k = 1, 2, ...: from the draft's own confidences where it is greedy.

        With noise a token of small probability may well be the noise's choice in both passes, so there the record of
        recent verifications is the better guide.
        """
        if seq.request.sampling.temperature >= GREEDY_BELOW:
            return self.acceptance.survival[: len(block) - 1]
        return list(accumulate((p if p is not None else 1.0 for p in block.confidences[1:]), lambda a, b: a * b))

    def verify_length(self, seq: Sequence, block: Block, num_running: int) -> int:
        """How many tokens of a drafted block, anchor included, are worth verifying. Nothing after a drafted end is."""
        limit = len(block)
        for j in range(1, len(block)):
            if block.token_ids[j] in seq.end_token_ids:
                limit = j + 1
                break
        survival = self.survival(seq, block)
        cost, context = self.costs.lookup, seq.num_cached
        drafted = cost(len(block), num_running, context)
        best, best_rate = len(block), 0.0
        for length in range(VERIFY_STEP, len(block) + VERIFY_STEP, VERIFY_STEP):
            length = min(length, len(block))
            expected = 1.0 + sum(survival[: min(length, limit) - 1])
            rate = expected / (drafted + cost(length, num_running, context))
            if rate > best_rate:
                best, best_rate = length, rate
        return best

    def draft_ahead(self, seq: Sequence, block: Block, next_width: int, num_running: int) -> bool:
        """Whether drafting the next block in the verifying pass pays: wasted unless this block is accepted whole."""
        if any(token in seq.end_token_ids for token in block.token_ids[1:]):
            return False
        survival = self.survival(seq, block)
        whole = survival[len(block) - 2] if len(block) - 2 < len(survival) else 0.0
        cost, context = self.costs.lookup, seq.num_cached
        verify = cost(len(block), num_running, context)
        together = cost(len(block) + next_width, num_running, context)
        return whole * cost(next_width, num_running, context) > together - verify
