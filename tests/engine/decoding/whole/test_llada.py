"""LLaDA against the naive loop of its authors. If one fails, users get other text than what was published."""

from __future__ import annotations

import random

import pytest

from tests.engine.decoding.harness import random_prompt
from tests.engine.decoding.whole.conftest import ORDERS, SAMPLED, Family, random_task, whole_request
from tests.engine.driving import drive
from tests.reference.bidirectional.loops import WholeTask
from tests.reference.sampling import Sampling

CASES = 200


@pytest.mark.parametrize("order", ORDERS["llada"])
def test_greedy_answers_and_pass_counts_are_the_published_loops(
    families: dict[tuple[str, str], Family], order: str
) -> None:
    """Every order, 200 cases in float64 and in float32."""
    rng = random.Random(f"llada/{order}")
    tasks = [random_task(rng, "llada", order) for _ in range(CASES)]
    ended = families["llada", "float64"].check(tasks)
    assert CASES // 20 < ended < CASES * 19 // 20, "end tokens come in some cases and not in others"
    families["llada", "float32"].check(tasks)


@pytest.mark.parametrize("order", ORDERS["llada"])
def test_sampled_answers_are_those_of_the_seed(families: dict[tuple[str, str], Family], order: str) -> None:
    """Temperature, filters, penalties and minimum length."""
    rng = random.Random(order)
    tasks = [random_task(rng, "llada", order, sampling=sampling) for sampling in SAMPLED for _ in range(3)]
    families["llada", "float64"].check(tasks)


def test_a_random_order_is_the_seeds(families: dict[tuple[str, str], Family]) -> None:
    """Greedy tokens in a random order: the same seed gives the same text, another one another."""
    family = families["llada", "float64"]
    tasks = [
        WholeTask(prompt=random_prompt(7), max_tokens=24, remasking="random", sampling=Sampling(seed=seed))
        for seed in (0, 0, 1, 2, 3)
    ]
    family.check(tasks)
    texts = [tuple(drive(family.engine(), [whole_request(task)])["r"].tokens) for task in tasks]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1
