"""LLaDA and Dream against the naive loops of their authors. If one fails, users get other text than they published."""

from __future__ import annotations

import random

import pytest

from tests.engine.decoding.whole.conftest import ORDERS, Family, random_task
from tests.reference.sampling import Sampling

PAIRS = [(name, order) for name, orders in ORDERS.items() for order in orders]
CASES = 200


@pytest.mark.parametrize(("name", "order"), PAIRS)
def test_greedy_answers_and_pass_counts_are_the_published_loops(
    families: dict[tuple[str, str], Family], name: str, order: str
) -> None:
    """Every order, 200 cases in float64; the first tenth of them in float32, too."""
    rng = random.Random(f"{name}/{order}")
    tasks = [random_task(rng, name, order) for _ in range(CASES)]
    ended = families[name, "float64"].check(tasks)
    assert CASES // 20 < ended < CASES * 19 // 20, "end tokens come in some cases and not in others"
    families[name, "float32"].check(tasks[: CASES // 10])


@pytest.mark.parametrize("name", ORDERS)
def test_sampled_answers_are_those_of_the_seed(families: dict[tuple[str, str], Family], name: str) -> None:
    """Temperature, filters, penalties and minimum length, with every order."""
    rng = random.Random(name)
    for order in ORDERS[name]:
        tasks = [
            random_task(rng, name, order, sampling=sampling)
            for sampling in (
                Sampling(temperature=0.8, seed=11),
                Sampling(temperature=1.2, top_k=6, top_p=0.8, seed=2**40),
                Sampling(temperature=0.7, repetition_penalty=1.2, frequency_penalty=0.3, min_tokens=1, seed=3),
            )
            for _ in range(3)
        ]
        families[name, "float64"].check(tasks)


def test_a_random_order_is_the_seeds(families: dict[tuple[str, str], Family]) -> None:
    """Greedy tokens in a random order: the same seed gives the same text, another one another."""
    family = families["llada", "float64"]
    rng = random.Random(1)
    base = random_task(rng, "llada", "random")
    tasks = [
        type(base)(prompt=base.prompt, max_tokens=24, block_length=8, remasking="random", sampling=Sampling(seed=seed))
        for seed in (0, 0, 1, 2, 3)
    ]
    family.check(tasks)
    from tests.engine.decoding.whole.conftest import whole_request
    from tests.engine.driving import drive

    texts = [tuple(drive(family.engine(), [whole_request(task)])["r"].tokens) for task in tasks]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1
