"""LLaDA-MoE against LLaDA's loop on transformers' Qwen3-MoE. If one fails, users get other text than was published."""

from __future__ import annotations

import random

import pytest

from tests.engine.decoding.whole.conftest import MIXTURE_ORDERS, SAMPLED, Family, random_task

CASES = 100


@pytest.mark.parametrize("order", MIXTURE_ORDERS)
def test_greedy_answers_and_pass_counts_are_the_published_loops(
    families: dict[tuple[str, str], Family], order: str
) -> None:
    """200 cases over both orders, in float64."""
    rng = random.Random(f"llada_moe/{order}")
    ended = families["llada_moe", "float64"].check([random_task(rng, "llada", order) for _ in range(CASES)])
    assert CASES // 20 < ended < CASES * 19 // 20, "end tokens come in some cases and not in others"


def test_sampled_answers_are_those_of_the_seed(families: dict[tuple[str, str], Family]) -> None:
    """Temperature, filters, penalties and minimum length."""
    rng = random.Random(1)
    tasks = [random_task(rng, "llada", "low_confidence", sampling=sampling) for sampling in SAMPLED for _ in range(3)]
    families["llada_moe", "float64"].check(tasks)
