"""The approximate context caches against naive loops that keep the same KV.

If one fails, an operator who chose an approximation gets another one, or answers that depend on who else is served.
"""

from __future__ import annotations

import random

import pytest

from engine.errors import ConfigError
from tests.conftest import MakeEngine
from tests.engine.decoding.whole.conftest import ORDERS, Family, random_task, whole_request
from tests.engine.driving import drive
from tests.reference.sampling import Sampling

CACHES = ("prefix", "dual")
CASES = 60


@pytest.mark.parametrize("context_cache", CACHES)
@pytest.mark.parametrize("name", ORDERS)
def test_answers_and_pass_counts_are_those_of_the_loop_with_the_same_cache(
    families: dict[tuple[str, str], Family], name: str, context_cache: str
) -> None:
    """Every order, greedy and sampled, infill included; float64, and some in float32."""
    rng = random.Random(f"{name}/{context_cache}")
    tasks = [
        random_task(rng, name, order, sampling=Sampling(temperature=rng.choice((0.0, 0.9)), seed=7))
        for order in ORDERS[name]
        for _ in range(CASES // len(ORDERS[name]))
    ]
    families[name, "float64"].check(tasks, context_cache)
    families[name, "float32"].check(tasks[::6], context_cache)


@pytest.mark.parametrize("name", ORDERS)
def test_the_three_ways_give_different_answers(families: dict[tuple[str, str], Family], name: str) -> None:
    """Else the tests above would compare one thing with itself: an approximation that is never wrong is none."""
    rng = random.Random(3)
    differing = dict.fromkeys(CACHES, 0)
    for _ in range(12):
        task = random_task(rng, name, ORDERS[name][0])
        texts = {
            cache: drive(families[name, "float64"].engine(cache), [whole_request(task)])["r"].tokens
            for cache in ("none", *CACHES)
        }
        for cache in CACHES:
            differing[cache] += texts[cache] != texts["none"]
        differing["prefix"] += texts["prefix"] != texts["dual"]
    assert all(differing.values()), differing


def test_a_model_that_caches_exactly_refuses_an_approximation(tiny_engine: MakeEngine) -> None:
    with pytest.raises(ConfigError, match=r"context_cache 'dual' is for models that see the whole text .* nemotron"):
        tiny_engine(context_cache="dual")
