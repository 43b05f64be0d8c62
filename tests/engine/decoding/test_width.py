"""How wide to speculate. If one fails, answers stay right but a server drafts where it does not pay, or never."""

from __future__ import annotations

import pytest

from engine.decoding.width import EXPLORE_EVERY, AcceptanceEstimate, CostTable, WidthController

# A device that waits for memory up to 64 tokens in a pass, and then pays by the token.
WIDTHS, BATCHES = (1, 2, 4, 8, 16, 32), (1, 2, 4, 8, 16, 32, 64)
ROOFLINE = CostTable(WIDTHS, BATCHES, tuple(tuple(max(64.0, float(w * b)) for b in BATCHES) for w in WIDTHS))


def test_a_table_says_what_was_measured_and_is_linear_between() -> None:
    table = CostTable((1, 4), (1, 2, 8), ((1.0, 2.0, 5.0), (3.0, 4.0)))
    assert [table.lookup(1, batch) for batch in (1, 2, 8)] == [1.0, 2.0, 5.0]
    assert table.lookup(1, 5) == pytest.approx(3.5)
    assert table.lookup(1, 10) == pytest.approx(6.0)
    assert table.lookup(4, 8) == pytest.approx(10.0)  # a row that ended early goes on as it ended
    assert table.lookup(2, 1) == pytest.approx(1.0 + 2.0 / 3)


def test_context_costs_by_position_and_by_pair() -> None:
    """A long context weighs the same on a narrow pass and, but for the pairs, on a wide one."""
    table = CostTable((1, 4), (1, 2), ((1.0, 2.0), (3.0, 6.0)), context=100, per_position=0.01, per_pair=0.001)
    assert table.lookup(1, 2, 100) == table.lookup(1, 2) == 2.0
    assert table.lookup(1, 2, 200) == pytest.approx(2.0 + 100 * 2 * 0.011)
    assert table.lookup(4, 1, 0) == pytest.approx(3.0 - 100 * 0.014)
    assert table.lookup(1, 1, 0) > 0


def test_a_long_context_makes_wide_blocks_pay() -> None:
    """Reading the cache costs a pass the same however many tokens it reads it for."""
    rows = tuple(tuple(width * batch * 1.0 for batch in BATCHES) for width in WIDTHS)
    controller = WidthController(CostTable(WIDTHS, BATCHES, rows, per_position=1.0), AcceptanceEstimate(32, prior=0.95))
    assert controller.draft_width(16, 32, 0) == 1
    assert controller.draft_width(16, 32, 1000) == 32


def test_noisy_measurements_never_make_a_pass_free() -> None:
    """A falling line, extended far enough, would be negative and win every comparison."""
    table = CostTable((1, 2), (1, 2), ((2.0, 1.0), (2.0, 0.5)))
    assert table.lookup(1, 64) > 0
    assert table.lookup(2, 64) > 0


def test_an_estimate_converges_to_what_is_observed() -> None:
    estimate = AcceptanceEstimate(16)
    for _ in range(400):
        estimate.observe(15, 3)
    assert estimate.survival[:3] == pytest.approx([1.0] * 3, abs=1e-3)
    assert estimate.survival[3:] == pytest.approx([0.0] * 12, abs=1e-3)
    assert estimate.tokens_per_round(8) == pytest.approx(4.0, abs=0.01)


def test_a_wholly_accepted_draft_speaks_for_longer_ones() -> None:
    """Else whoever begins with narrow blocks never learns that wide ones would pay."""
    estimate = AcceptanceEstimate(16)
    for _ in range(400):
        estimate.observe(3, 3)
    assert estimate.survival[-1] > 0.95
    assert estimate.tokens_per_round(16) > 15


def test_what_is_known_of_longer_drafts_outweighs_it_and_fades() -> None:
    estimate = AcceptanceEstimate(16)
    for _ in range(200):
        estimate.observe(15, 5)
    estimate.observe(3, 3)
    assert estimate.tokens_per_round(16) == pytest.approx(6.0, abs=0.1)
    for _ in range(4000):
        estimate.observe(3, 3)
    assert estimate.tokens_per_round(16) > 12, "the texts of today may not be like those of yesterday"


def test_a_width_beyond_what_is_estimated_counts_as_the_widest() -> None:
    estimate = AcceptanceEstimate(8)
    assert estimate.tokens_per_round(1) == 1.0
    assert estimate.tokens_per_round(64) == estimate.tokens_per_round(8) < 8


def test_blocks_are_wide_when_the_device_is_idle_and_narrow_when_it_is_busy() -> None:
    controller = WidthController(ROOFLINE, AcceptanceEstimate(32, prior=0.9))
    widths = [controller.draft_width(running, 32) for running in (1, 4, 16, 64)]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == 32
    assert widths[-1] == 1


def test_bad_drafts_lead_to_plain_decoding_which_still_tries_now_and_then() -> None:
    """Else a server that once saw bad drafts would never speculate again."""
    controller = WidthController(ROOFLINE, AcceptanceEstimate(32))
    for _ in range(200):
        controller.acceptance.observe(31, 0)
    widths = [controller.draft_width(1, 32) for _ in range(4 * EXPLORE_EVERY)]
    assert widths.count(1) == 4 * (EXPLORE_EVERY - 1)
    assert max(widths) > 1
    crowd = [controller.draft_width(16, 32) for _ in range(2 * 16 * EXPLORE_EVERY)]
    assert sum(width > 1 for width in crowd) == 2, "one sequence in so many passes, however many run"


def test_a_limit_below_the_narrowest_measured_width_is_plain_decoding() -> None:
    controller = WidthController(CostTable((1, 8), (1,), ((1.0,), (1.0,))), AcceptanceEstimate(32))
    assert controller.draft_width(1, 4) == 1
    assert controller.draft_width(1, 8) == 8
