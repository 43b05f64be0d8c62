"""How wide to speculate: from what passes cost on this machine and from how drafts have fared lately.

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
"""While plain AR looks best, one block in so many is still drafted, so that acceptance keeps being observed."""

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

    @classmethod
    def assumed(cls, max_width: int) -> CostTable:
        """A stand-in where nothing was measured: a pass costs as much as 64 tokens do, and then by the token."""
        widths = tuple(1 << i for i in range(max_width.bit_length()) if 1 << i <= max_width)
        return cls(widths, (1, 2), tuple((64.0 + width, 64.0 + 2 * width) for width in widths))

    def lookup(self, width: int, batch: int) -> float:
        """Seconds of a pass, linear between and beyond the measured widths and batches."""
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
    """Exponential moving average of P(at least k drafts accepted), k = 1, 2, ..., over recent verifications."""

    def __init__(self, max_width: int, decay: float = 0.95, prior: float = 0.85) -> None:
        self._decay = decay
        self.survival = [prior**k for k in range(1, max_width)]

    def observe(self, drafted: int, accepted: int) -> None:
        """Takes in one verification of `drafted` tokens. Positions beyond a rejection are known to fail too."""
        known = len(self.survival) if accepted < drafted else min(drafted, len(self.survival))
        for k in range(known):
            hit = 1.0 if k < accepted else 0.0
            self.survival[k] = self._decay * self.survival[k] + (1 - self._decay) * hit

    def tokens_per_round(self, width: int) -> float:
        """Expected tokens a round emits: the accepted drafts and the bonus token."""
        return 1.0 + sum(self.survival[: width - 1])


class WidthController:
    """Decides widths for all speculating sequences of an engine."""

    def __init__(self, costs: CostTable, acceptance: AcceptanceEstimate) -> None:
        self.costs = costs
        self.acceptance = acceptance
        self._unexplored = 0

    def draft_width(self, num_running: int, limit: int) -> int:
        """Tokens of the next canvas, seed included, up to `limit`; 1 is plain AR. A wider round is two passes."""
        widest, widest_rate = 1, 0.0
        for width in self.costs.widths:
            if 1 < width <= limit:
                rate = self.acceptance.tokens_per_round(width) / (2 * self.costs.lookup(width, num_running))
                if rate > widest_rate:
                    widest, widest_rate = width, rate
        if widest_rate * self.costs.lookup(1, num_running) >= 1.0:
            return widest
        self._unexplored += 1
        if self._unexplored < EXPLORE_EVERY:
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
        """How many tokens of a drafted block, seed included, are worth verifying. Nothing after a drafted end is."""
        limit = len(block)
        for j in range(1, len(block)):
            if block.token_ids[j] in seq.end_token_ids:
                limit = j + 1
                break
        survival = self.survival(seq, block)
        drafted = self.costs.lookup(len(block), num_running)
        best, best_rate = len(block), 0.0
        for length in range(VERIFY_STEP, len(block) + VERIFY_STEP, VERIFY_STEP):
            length = min(length, len(block))
            expected = 1.0 + sum(survival[: min(length, limit) - 1])
            rate = expected / (drafted + self.costs.lookup(length, num_running))
            if rate > best_rate:
                best, best_rate = length, rate
        return best

    def draft_ahead(self, seq: Sequence, block: Block, next_width: int, num_running: int) -> bool:
        """Whether drafting the next block in the verifying pass pays: wasted unless this block is accepted whole."""
        if any(token in seq.end_token_ids for token in block.token_ids[1:]):
            return False
        survival = self.survival(seq, block)
        whole = survival[len(block) - 2] if len(block) - 2 < len(survival) else 0.0
        verify = self.costs.lookup(len(block), num_running)
        together = self.costs.lookup(len(block) + next_width, num_running)
        return whole * self.costs.lookup(next_width, num_running) > together - verify
