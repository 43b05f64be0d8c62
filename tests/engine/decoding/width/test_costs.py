"""What passes cost. If one fails, `auto` goes on choosing widths by figures of a start that was disturbed."""

from __future__ import annotations

import pytest

from engine.decoding.costs import CostTable, PassCosts


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


def test_noisy_measurements_never_make_a_pass_free() -> None:
    """A falling line, extended far enough, would be negative and win every comparison."""
    table = CostTable((1, 2), (1, 2), ((2.0, 1.0), (2.0, 0.5)))
    assert table.lookup(1, 64) > 0
    assert table.lookup(2, 64) > 0


def test_a_cell_that_was_measured_wrong_is_right_after_a_few_passes() -> None:
    """A start that was disturbed would leave widths wrong for good."""
    table = CostTable((1, 8), (1, 4), ((1.0, 2.0), (8.0, 8.0)))
    costs = PassCosts(table)
    for _ in range(8):
        costs.observe(1, 1, 0, 1.0)
        costs.observe(8, 1, 0, 2.0)
    assert costs.lookup(8, 1) / costs.lookup(1, 1) == pytest.approx(2.0, rel=0.1)
    assert costs.lookup(8, 4) / costs.lookup(1, 4) == pytest.approx(4.0, rel=0.01), "of these nothing was seen"


def test_a_slow_minute_moves_no_width_against_another() -> None:
    """Whatever slows all passes is seen in those widths first that are in use: others would then look cheaper."""
    costs = PassCosts(CostTable((1, 8), (1,), ((1.0,), (2.0,))))
    for _ in range(200):
        costs.observe(1, 1, 0, 1.0)
        costs.observe(8, 1, 0, 2.0)
    for _ in range(300):
        costs.observe(8, 1, 0, 6.0)
    assert costs.level == pytest.approx(3.0, rel=0.1)
    assert costs.lookup(8, 1) / costs.lookup(1, 1) == pytest.approx(2.0, rel=0.1)
    for _ in range(300):
        costs.observe(8, 1, 0, 2.0)
    assert costs.lookup(8, 1) / costs.lookup(1, 1) == pytest.approx(2.0, rel=0.1)


def test_a_lasting_change_of_one_width_is_followed() -> None:
    """A neighbour that takes the memory's bandwidth slows narrow passes more than wide ones."""
    costs = PassCosts(CostTable((1, 8), (1,), ((1.0,), (2.0,))))
    for _ in range(200):
        costs.observe(1, 1, 0, 1.0)
        costs.observe(8, 1, 0, 2.0)
    for _ in range(300):
        costs.observe(1, 1, 0, 2.0)
        costs.observe(8, 1, 0, 2.0)
    assert costs.lookup(8, 1) / costs.lookup(1, 1) == pytest.approx(1.0, rel=0.1)


def test_single_passes_that_were_held_up_count_for_little() -> None:
    costs = PassCosts(CostTable((1, 8), (1,), ((1.0,), (2.0,))))
    for i in range(400):
        costs.observe(1, 1, 0, 1.0)
        costs.observe(8, 1, 0, 40.0 if i % 20 == 10 else 2.0)
    assert costs.lookup(8, 1) / costs.lookup(1, 1) == pytest.approx(2.0, rel=0.1)


def test_what_lies_outside_of_the_table_teaches_nothing() -> None:
    """Its figures there are a guess, and would be corrected in place of what was measured."""
    costs = PassCosts(CostTable((1, 8), (1, 4), ((1.0, 2.0), (2.0, 4.0))))
    before = [costs.lookup(width, batch) for width in (1, 8) for batch in (1, 4)]
    costs.observe(64, 1, 0, 1000.0)
    costs.observe(1, 64, 0, 1000.0)
    costs.observe(1, 1, 0, 0.0)
    assert [costs.lookup(width, batch) for width in (1, 8) for batch in (1, 4)] == before
