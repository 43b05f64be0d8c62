"""What passes cost: a table measured at start-up, and its corrections by what passes take while requests are served."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace

NOISE = 0.05
"""Variance of one observation, as all variances here of the natural logarithm of seconds: one in three is 20 % off."""
CELL_UNKNOWN = 1.0
"""Variance of a cell that nothing was seen of since start-up: it may be wrong by a factor of seven."""
CELL_DRIFT = 1e-5
"""What is added to it with every pass that tells nothing of the cell."""
LEVEL_UNKNOWN = 100.0
LEVEL_DRIFT = 0.004
"""The level follows a machine that slows down within about five passes."""
OUTLIER = 2.0
"""Standard deviations beyond which an observation counts as if it were no further off."""
MOST_OFF = 4.0
"""Most that a cell is ever corrected by."""


@dataclass(frozen=True)
class CostTable:
    """Measured seconds of a pass by query tokens a sequence (width) and sequences in the batch."""

    widths: tuple[int, ...]
    """Ascending, beginning with 1."""
    batches: tuple[int, ...]
    """Ascending, beginning with 1."""
    seconds: Rows[Rows[float]]
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

    def lookup(self, width: float, batch: int, context: float | None = None) -> float:
        """Seconds of a pass whose sequences have `context` positions cached; None: as many as when it was measured.

        Linear between and beyond the measured widths and batches, and in the context.
        """
        further = 0 if context is None else context - self.context
        attention = further * batch * (self.per_position + width * self.per_pair)
        return max(self._measured(width, batch) + attention, 1e-9)

    def _measured(self, width: float, batch: int) -> float:
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

    def filled(self) -> list[list[float]]:
        """Its cells, every row to its end. What is extrapolated is no less than the cells of smaller passes."""
        cells: list[list[float]] = []
        for i, width in enumerate(self.widths):
            known = len(self.seconds[i])
            row: list[float] = []
            for j, batch in enumerate(self.batches):
                below = max(row[j - 1] if j else 0.0, cells[i - 1][j] if i else 0.0)
                value = self.lookup(width, batch)
                row.append(value if j < known else max(value, below))
            cells.append(row)
        return cells


class PassCosts:
    """A cost table that follows what passes really take.

    What a pass took is the table's figure times two unknown factors. The *level* is common to all passes: what slows
    the whole machine, be it for a minute, changes it within a few passes, and no comparison between widths. The
    *offset* of a cell is its own: it is learned in the first few passes of that kind, and then changes slowly.
    Both are logarithms, estimated together by a Kalman filter (Kalman 1960) that keeps a variance of each and no
    covariances; an observation far outside of what they allow is moved to their edge.
    """

    def __init__(self, table: CostTable) -> None:
        self._started = table.filled()
        self._cells = [list(row) for row in self._started]
        self._table = replace(table, seconds=self._cells)
        shape = [[0.0] * len(table.batches) for _ in table.widths]
        self._offsets = [list(row) for row in shape]
        self._variances = [[CELL_UNKNOWN for _ in row] for row in shape]
        self._seen = [[0 for _ in row] for row in shape]
        self._level, self._level_variance = 0.0, LEVEL_UNKNOWN
        self._passes = 0

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the table, ascending, beginning with 1."""
        return self._table.widths

    @property
    def level(self) -> float:
        """How many times longer than in the table passes take on the whole."""
        return math.exp(self._level)

    def lookup(self, width: float, batch: int, context: float | None = None) -> float:
        """Seconds of a pass as `CostTable.lookup` says, with all that was learned but the level, which divides out."""
        return self._table.lookup(width, batch, context)

    def spread(self, width: float, batch: int) -> float:
        """Standard deviation of the logarithm of `lookup`, next to other kinds of passes."""
        i, j, _ = max(self._shares(width, batch), key=lambda cell: cell[2])
        return math.sqrt(self._variance(i, j))

    def observe(self, width: float, batch: int, context: float, seconds: float) -> None:
        """Takes in a pass of `batch` sequences with, on the average, `width` query tokens and `context` cached."""
        if width > self.widths[-1] or batch > self._table.batches[-1] or seconds <= 0.0:
            return
        self._passes += 1
        predicted = self._table.lookup(width, batch, context)
        # Of each cell: the share of the prediction that comes from it, and how uncertain it is.
        cells = [(i, j, min(share * self._cells[i][j] / predicted, 1.0)) for i, j, share in self._shares(width, batch)]
        variances = [self._variance(i, j) for i, j, _ in cells]
        total = self._level_variance + NOISE
        total += sum(slope * slope * variance for (_, _, slope), variance in zip(cells, variances, strict=True))
        edge = OUTLIER * math.sqrt(total)
        error = min(max(math.log(seconds / predicted) - self._level, -edge), edge)
        self._level += self._level_variance / total * error
        self._level_variance *= 1.0 - self._level_variance / total
        self._level_variance += LEVEL_DRIFT
        for (i, j, slope), variance in zip(cells, variances, strict=True):
            gain = slope * variance / total
            self._offsets[i][j] = min(max(self._offsets[i][j] + gain * error, -MOST_OFF), MOST_OFF)
            self._cells[i][j] = self._started[i][j] * math.exp(self._offsets[i][j])
            self._variances[i][j], self._seen[i][j] = variance * (1.0 - slope * gain), self._passes

    def _variance(self, i: int, j: int) -> float:
        return min(self._variances[i][j] + CELL_DRIFT * (self._passes - self._seen[i][j]), CELL_UNKNOWN)

    def _shares(self, width: float, batch: int) -> list[tuple[int, int, float]]:
        """The cells that a pass lies between, each with its share; shares sum to 1."""
        rows, columns = _between(self._table.widths, width), _between(self._table.batches, batch)
        return [(i, j, a * b) for i, a in rows for j, b in columns]


def _between(places: tuple[int, ...], value: float) -> list[tuple[int, float]]:
    """The one or two places next to a value within or beyond them, with shares that sum to 1."""
    i = min(max(bisect_right(places, value) - 1, 0), len(places) - 1)
    if i == len(places) - 1 or value <= places[i]:
        return [(i, 1.0)]
    share = (value - places[i]) / (places[i + 1] - places[i])
    return [(i, 1.0 - share), (i + 1, share)]
