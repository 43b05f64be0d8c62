"""Dream against the naive loop of its authors. If one fails, users get other text than what was published."""

from __future__ import annotations

import random

import pytest

from tests.engine.decoding.whole.conftest import ORDERS, SAMPLED, Family, random_task

CASES = 200


@pytest.mark.parametrize("order", ORDERS["dream"])
def test_greedy_answers_and_pass_counts_are_the_published_loops(
    families: dict[tuple[str, str], Family], order: str
) -> None:
    """Every order, 200 cases in float64 and in float32."""
    rng = random.Random(f"dream/{order}")
    tasks = [random_task(rng, "dream", order) for _ in range(CASES)]
    ended = families["dream", "float64"].check(tasks)
    assert CASES // 20 < ended < CASES * 19 // 20, "end tokens come in some cases and not in others"
    families["dream", "float32"].check(tasks)


@pytest.mark.parametrize("order", ORDERS["dream"])
def test_sampled_answers_are_those_of_the_seed(families: dict[tuple[str, str], Family], order: str) -> None:
    """Temperature, filters, penalties and minimum length."""
    rng = random.Random(order)
    tasks = [random_task(rng, "dream", order, sampling=sampling) for sampling in SAMPLED for _ in range(3)]
    families["dream", "float64"].check(tasks)
