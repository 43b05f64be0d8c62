"""If these fail, a claim such as "16 at once give 2.5 times the throughput" rests on nothing."""

import asyncio

import pytest

from loadtest.modes import Mode, grid
from loadtest.records import Record, Summary, summarise
from loadtest.sweep import Cell, cells_of, compare, run_sweep


def summary(tokens: int, end_s: float = 1.0, error: str = "") -> Summary:
    record = Record(index=0, start_s=0.0, end_s=end_s, completion_tokens=tokens, passes=2, error=error)
    return summarise([record], wall_s=1.0)


CELLS = cells_of([1, 16], [Mode("ar"), Mode("diffusion", 0.9)])


def test_the_grid_leaves_out_settings_a_mode_would_refuse() -> None:
    modes = grid(["ar", "speculative", "diffusion", None], [0.7, 0.9], [16, 32])
    labels = [mode.label() for mode in modes]
    assert labels[:3] == ["ar", "speculative, block 16", "speculative, block 32"]
    assert labels[3:7] == [f"diffusion, threshold {t}, block {b}" for t in (0.7, 0.9) for b in (16, 32)]
    assert len(labels) == 11
    assert modes[0].fields() == {"decoding": "ar"}
    assert modes[3].fields() == {"decoding": "diffusion", "threshold": 0.7, "block_length": 16}
    assert modes[7].fields() == {"threshold": 0.7, "block_length": 16}


def test_the_grid_gives_a_factor_to_the_rules_that_have_one() -> None:
    """A sweep would send what the server refuses, or ask the same thing twice."""
    modes = grid(["ar", "diffusion"], [0.9], [None], ["threshold", "factor"], [1.0, 2.0])
    assert [mode.fields() for mode in modes] == [
        {"decoding": "ar"},
        {"decoding": "diffusion", "threshold": 0.9, "unmasking": "threshold"},
        {"decoding": "diffusion", "threshold": 0.9, "unmasking": "factor", "factor": 1.0},
        {"decoding": "diffusion", "threshold": 0.9, "unmasking": "factor", "factor": 2.0},
    ]
    assert modes[2].label() == "diffusion, factor, factor 1, threshold 0.9"


def test_cells_run_in_turn_not_one_after_the_other() -> None:
    order: list[tuple[str, int]] = []

    async def run_cell(cell: Cell, repeat: int) -> Summary:
        order.append((cell.label(), repeat))
        return summary(10)

    async def go() -> None:
        await run_sweep(CELLS[:2], 3, run_cell, asyncio.Event())

    asyncio.run(go())
    assert order == [(cell.label(), repeat) for repeat in range(3) for cell in CELLS[:2]]


def test_ratios_are_taken_within_a_repeat_and_then_the_median() -> None:
    # The machine halves its speed in repeat 2: the ratio within each repeat stays about 3.
    alone = [summary(100), summary(50), summary(110)]
    together = [summary(300), summary(150), summary(308)]
    first, second = compare(CELLS[:2], [alone, together])
    assert first.throughput_ratio is not None
    assert (first.throughput_ratio.median, first.throughput_ratio.low, first.throughput_ratio.high) == (1, 1, 1)
    assert second.output_tokens_per_s == 300
    assert second.throughput_ratio is not None
    assert second.throughput_ratio.median == pytest.approx(3.0)
    assert second.throughput_ratio.low == pytest.approx(2.8)
    assert second.throughput_ratio.high == pytest.approx(3.0)


def test_latency_ratios_and_tokens_per_pass_are_reported() -> None:
    _, second = compare(CELLS[:2], [[summary(10, 1.0)], [summary(10, 2.5)]])
    assert second.latency_ratio is not None
    assert second.latency_ratio.median == pytest.approx(2.5)
    assert second.tokens_per_pass == pytest.approx(5.0)


def test_a_cell_that_got_nothing_through_has_no_ratio_and_breaks_nothing() -> None:
    first, second = compare(CELLS[:2], [[summary(10, error="http_500")], [summary(10)]])
    assert first.throughput_ratio is None
    assert second.throughput_ratio is None
    assert (first.failed, second.failed) == (1, 0)


def test_an_interrupted_sweep_keeps_the_cells_it_finished() -> None:
    async def go() -> list[str]:
        stop = asyncio.Event()

        async def run_cell(cell: Cell, repeat: int) -> Summary | None:
            if cell is CELLS[2]:
                stop.set()
                return None
            return summary(10)

        return [result.cell.label() for result in await run_sweep(CELLS, 3, run_cell, stop)]

    assert asyncio.run(go()) == [cell.label() for cell in CELLS[:2]]
