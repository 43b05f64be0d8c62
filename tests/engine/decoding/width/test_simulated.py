"""A controller on made-up machines, whose table is wrong, with requests whose drafts fare differently.

If one fails, a server whose start was disturbed, or that has just served somebody's difficult texts, is slow
for everybody after that.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from engine.decoding.acceptance import AcceptanceEstimate
from engine.decoding.costs import CostTable
from engine.decoding.width import EXPLORE_SHARE, WidthController
from tests.engine.decoding.width.simulation import (
    WIDTHS,
    Knowing,
    Machine,
    Result,
    Text,
    roofline,
    scaled,
    simulate,
)

BAR = 0.95
"""Share of the speed of the best fixed mode, or of a controller that knows all, that must be reached."""
HARD, EASY = Text.even(0.15), Text.even(0.97)
WRONG = {
    "right": lambda width, batch: 1.0,
    "drafts look four times too dear": lambda width, batch: 4.0 if width > 1 else 1.0,
    "drafts look four times too cheap": lambda width, batch: 0.25 if width > 1 else 1.0,
    "one width looks too dear": lambda width, batch: 4.0 if width == 16 else 1.0,
    "one width looks too cheap": lambda width, batch: 0.25 if width == 32 else 1.0,
}


def controller(table: CostTable) -> WidthController:
    return WidthController(table, AcceptanceEstimate(WIDTHS[-1]))


def knowing(true: CostTable, texts: list[Text], in_flight: int = 1) -> Result:
    """By a controller that knows all and tries nothing."""
    return simulate(Knowing(true), Machine(true), texts, in_flight)


def best_fixed(true: CostTable, texts: list[Text], in_flight: int, widths: tuple[int, ...] = (1, 32)) -> float:
    """Tokens a second of the best width, if all blocks have the same: of the fixed modes, if not said otherwise."""
    return max(simulate(Knowing(true), Machine(true), texts, in_flight, width).rate() for width in widths)


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("flat", [4.0, 16.0, 64.0])
def test_a_wrong_table_is_found_out(wrong: str, flat: float) -> None:
    """Within a few hundred passes, those that it takes to try each width among them."""
    true = roofline(flat)
    for text in (EASY, HARD):
        texts = [text] * (80 if text is EASY else 20)
        result = simulate(controller(scaled(true, WRONG[wrong])), Machine(true), texts)
        assert result.rate(result.busy // 2) > BAR * knowing(true, texts).rate()


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("in_flight", [4, 16])
def test_a_wrong_table_is_found_out_in_company(wrong: str, in_flight: int) -> None:
    """The width of one sequence is one of many in a pass, of which only the whole is timed."""
    true = roofline(64.0)
    texts = [EASY] * (45 * in_flight)
    result = simulate(controller(scaled(true, WRONG[wrong])), Machine(true), texts, in_flight)
    rate = result.rate(result.busy // 2)
    assert rate > BAR * best_fixed(true, texts, in_flight)
    assert rate > 0.85 * best_fixed(true, texts, in_flight, (4, 16))


@pytest.mark.parametrize("in_flight", [1, 4])
def test_predictable_requests_after_hard_ones_of_somebody_else(in_flight: int) -> None:
    """After six of them, four to nine predictable ones used to run near AR's speed."""
    true = roofline(64.0)
    before, after = [HARD] * 50, [EASY] * (60 * in_flight)
    result = simulate(controller(true), Machine(true), before + after, in_flight)
    alone = simulate(controller(true), Machine(true), before, in_flight)
    # The first of them pay for what is found out.
    assert result.rate(len(alone.tokens) + 40) > BAR * best_fixed(true, after, in_flight)


@pytest.mark.parametrize("in_flight", [1, 4, 16])
def test_a_mix_of_requests_is_faster_than_any_one_width(in_flight: int) -> None:
    true = roofline(64.0)
    texts = random.Random(3).choices([HARD, EASY], k=40 + 15 * in_flight)
    result = simulate(controller(true), Machine(true), texts, in_flight)
    assert result.rate() > BAR * best_fixed(true, texts, in_flight)


def test_trying_costs_no_more_than_its_share() -> None:
    """Where nothing is to be found, as for random text at a high load."""
    true = roofline(4.0)
    texts = [Text.even(0.0, 400)] * 10
    result = simulate(controller(true), Machine(true, noise=0.0, outliers=0.0), texts)
    lost = 1.0 - result.rate(1000) * true.lookup(1, 1)
    assert 0.0 < lost < EXPLORE_SHARE + 0.015


def test_a_noisy_minute_neither_sticks_nor_moves_widths() -> None:
    true = roofline(16.0)
    texts = [EASY] * 200
    calm = simulate(controller(true), Machine(true), texts)
    begin, end = calm.seconds[-1] * 0.3, calm.seconds[-1] * 1.0
    noisy = simulate(controller(true), Machine(true, slow=lambda now: 3.0 if begin < now < end else 1.0), texts)
    last = next(i for i, now in enumerate(noisy.seconds) if now > end)
    assert noisy.rate(last) > 0.93 * calm.rate(calm.busy // 2)
    during = noisy.widths[len(noisy.widths) // 3 : len(noisy.widths) // 2]
    assert sum(width == 16 for width in during) > 0.6 * len(during)


@settings(max_examples=10, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    flat=st.sampled_from([2.0, 8.0, 32.0, 64.0]),
    factors=st.lists(st.floats(-1.0, 1.0), min_size=42, max_size=42),
    rate=st.one_of(st.floats(0.02, 0.3), st.floats(0.8, 0.98)),
    falls=st.floats(0.97, 1.0),
)
def test_any_table_and_any_profile_of_acceptance(flat: float, factors: list[float], rate: float, falls: float) -> None:
    """The start may have measured every figure up to four times too high or too low."""
    true = roofline(flat)
    cells = iter(factors)
    table = scaled(true, lambda width, batch: 4.0 ** next(cells))
    texts = [Text(tuple(rate * falls**k for k in range(WIDTHS[-1] - 1)))] * 40
    result = simulate(controller(table), Machine(true), texts)
    assert result.rate(result.busy // 2) > 0.9 * knowing(true, texts).rate()
