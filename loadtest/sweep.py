"""Several cells (concurrency x mode) measured in turn, A B A B, so that a noisy machine is noisy for all alike."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from statistics import median

import msgspec

from loadtest.modes import Mode
from loadtest.records import Summary


class Cell(msgspec.Struct, frozen=True):
    """One setting of a sweep."""

    concurrency: int
    mode: Mode

    def label(self) -> str:
        """A short name for tables."""
        return f"{self.concurrency} x {self.mode.label()}"


class Ratio(msgspec.Struct, frozen=True):
    """This cell over the first one: the median over repeats of the ratio within each repeat, and its extremes."""

    median: float
    low: float
    high: float


class CellResult(msgspec.Struct, frozen=True, kw_only=True):
    """A cell's repeats and what they come to. Latencies are seconds; each number is the median over repeats."""

    cell: Cell
    repeats: list[Summary]
    output_tokens_per_s: float
    requests_per_s: float
    first_text_p50_s: float
    end_p50_s: float
    end_p95_s: float
    tokens_per_pass: float | None
    throughput_ratio: Ratio | None
    """Ratio of output tokens a second. None when no request of this cell or of the first one succeeded."""
    latency_ratio: Ratio | None
    """Ratio of median end-to-end latencies."""
    failed: int


RunCell = Callable[[Cell, int], Awaitable[Summary | None]]
"""Measures one cell in one repeat (its number, from 0); None when it was interrupted."""


def cells_of(concurrencies: Sequence[int], modes: Sequence[Mode]) -> list[Cell]:
    """The grid, concurrency varying fastest."""
    return [Cell(concurrency, mode) for mode in modes for concurrency in concurrencies]


async def run_sweep(cells: Sequence[Cell], repeats: int, run_cell: RunCell, stop: asyncio.Event) -> list[CellResult]:
    """Run all cells in turn, `repeats` times over. After an interrupt: what was measured so far."""
    measured: list[list[Summary]] = [[] for _ in cells]
    for repeat in range(repeats):
        for cell, summaries in zip(cells, measured, strict=True):
            if stop.is_set():
                return compare(cells, measured)
            summary = await run_cell(cell, repeat)
            if summary is not None:
                summaries.append(summary)
    return compare(cells, measured)


def compare(cells: Sequence[Cell], measured: Sequence[Sequence[Summary]]) -> list[CellResult]:
    """Medians over repeats, and ratios against the first cell within each repeat. Cells never measured are left out."""
    return [_result(cell, summaries, measured[0]) for cell, summaries in zip(cells, measured, strict=True) if summaries]


def _result(cell: Cell, summaries: Sequence[Summary], first: Sequence[Summary]) -> CellResult:
    per_pass = [s.tokens_per_pass for s in summaries if s.tokens_per_pass is not None]
    return CellResult(
        cell=cell,
        repeats=list(summaries),
        output_tokens_per_s=median(s.output_tokens_per_s for s in summaries),
        requests_per_s=median(s.requests_per_s for s in summaries),
        first_text_p50_s=median(s.first_text_s.p50 for s in summaries),
        end_p50_s=median(s.end_s.p50 for s in summaries),
        end_p95_s=median(s.end_s.p95 for s in summaries),
        tokens_per_pass=median(per_pass) if per_pass else None,
        throughput_ratio=_ratio([s.output_tokens_per_s for s in summaries], [s.output_tokens_per_s for s in first]),
        latency_ratio=_ratio([s.end_s.p50 for s in summaries], [s.end_s.p50 for s in first]),
        failed=sum(s.failed for s in summaries),
    )


def _ratio(values: Sequence[float], first: Sequence[float]) -> Ratio | None:
    ratios = [value / base for value, base in zip(values, first, strict=False) if base > 0 and value > 0]
    return Ratio(median(ratios), min(ratios), max(ratios)) if ratios else None
