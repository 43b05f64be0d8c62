"""Auto: self-speculation whose width is chosen anew for every block, from measured costs and recent acceptance.

Self-speculation is exact at every width (1 is plain AR), so the width is a matter of speed alone: wide where the device
waits for memory, narrow where it is busy or drafts are rejected.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import torch

from engine.batch import Phase, Span
from engine.decoding.base import HostChoices, StepOutcome
from engine.decoding.self_speculation import SelfSpeculation
from engine.sampling import Sampler
from engine.sequence import Sequence

EXPLORE_EVERY = 64
"""While plain AR looks best, one block in so many is still drafted, so that acceptance keeps being observed."""


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
        """Seconds of a pass, linear in the batch between and beyond the measured ones. `width` must be measured."""
        row = self.seconds[self.widths.index(width)]
        if len(row) == 1:
            return row[0] * batch / self.batches[0]
        j = min(max(bisect_right(self.batches, batch) - 1, 0), len(row) - 2)
        low, high = self.batches[j], self.batches[j + 1]
        slope = (row[j + 1] - row[j]) / (high - low)
        return max(row[j] + slope * (batch - low), 1e-9)


class AcceptanceEstimate:
    """Exponential moving average of P(at least k drafts accepted), k = 1, 2, ..., over recent verifications."""

    def __init__(self, max_width: int, decay: float = 0.95, prior: float = 0.85) -> None:
        self._decay = decay
        self._survival = [prior**k for k in range(1, max_width)]

    def observe(self, drafted: int, accepted: int) -> None:
        """Takes in one verification of `drafted` tokens. Positions beyond a rejection are known to fail too."""
        known = len(self._survival) if accepted < drafted else drafted
        for k in range(known):
            hit = 1.0 if k < accepted else 0.0
            self._survival[k] = self._decay * self._survival[k] + (1 - self._decay) * hit

    def tokens_per_round(self, width: int) -> float:
        """Expected tokens a round emits: the accepted drafts and the bonus token."""
        return 1.0 + sum(self._survival[: width - 1])


class WidthController:
    """Chooses the width with the most expected tokens a second."""

    def __init__(self, costs: CostTable, acceptance: AcceptanceEstimate) -> None:
        self.costs = costs
        self.acceptance = acceptance
        self._unexplored = 0

    def width(self, num_running: int, limit: int) -> int:
        """The best measured width up to `limit` for `num_running` sequences. A round above width 1 is two passes."""
        best, best_rate = 1, 1.0 / self.costs.lookup(1, num_running)
        widest_rate, widest = 0.0, 1
        for width in self.costs.widths:
            if not 1 < width <= limit:
                continue
            rate = self.acceptance.tokens_per_round(width) / (2 * self.costs.lookup(width, num_running))
            if rate > widest_rate:
                widest, widest_rate = width, rate
        if widest_rate > best_rate:
            best = widest
        elif widest > 1:
            self._unexplored += 1
            if self._unexplored >= EXPLORE_EVERY:
                best, self._unexplored = widest, 0
        return best


class Auto(SelfSpeculation):
    """Self-speculation of adaptive width, 1 included."""

    name = "auto"

    def __init__(
        self,
        sampler: Sampler,
        mask_token_id: int,
        device: torch.device,
        controller: WidthController,
        shared_verify_below: int = 0,
    ) -> None:
        super().__init__(sampler, mask_token_id, device, shared_verify_below)
        self.controller = controller

    def width(self, seq: Sequence, num_running: int) -> int:
        return self.controller.width(num_running, seq.request.decoding.block_length)

    def conclude(self, span: Span, choices: HostChoices, i: int) -> StepOutcome:
        outcome = super().conclude(span, choices, i)
        if span.phase is Phase.VERIFY and outcome.accepted is not None:
            self.controller.acceptance.observe(outcome.drafted, outcome.accepted)
        return outcome
