"""Scores and schedules of the orders, by hand. If one fails, positions are unmasked in another order than published."""

from __future__ import annotations

import math

import pytest
import torch

from engine.decoding.orders import ORDERS, certainties, margins, scheduled, skip_idle_steps, time_share
from engine.request import CONFIDENT, DecodingParams, Request, SamplingParams
from engine.sequence import Block, Sequence
from tests.reference.noise import step_uniform


def sequence(
    order: str, steps: int | None = None, threshold: float | None = None, seed: int = 5, unmasking: str = "threshold"
) -> Sequence:
    decoding = DecodingParams(
        mode="diffusion", remasking=order, threshold=threshold, max_denoising_steps=steps, block_length=8,
        unmasking=unmasking,
    )  # fmt: skip
    request = Request(
        request_id="r", prompt_token_ids=[9], max_tokens=8, sampling=SamplingParams(seed=seed), decoding=decoding
    )
    return Sequence(request, frozenset(), 0)


def counts(order: str, length: int, steps: int | None) -> list[int]:
    """Positions that each step of a block unmasks, from the left."""
    seq, block = sequence(order, steps), Block.fresh(1, length, 0)
    found = []
    while any(block.masked):
        count = scheduled(seq, block)
        for _ in range(count):
            block.masked[block.masked.index(True)] = False
        block.steps += 1
        found.append(count)
    return found


def test_lladas_steps_take_the_same_number_and_the_first_ones_the_rest() -> None:
    assert counts("low_confidence", 8, 3) == [3, 3, 2]
    assert counts("random", 8, 8) == [1] * 8
    assert counts("low_confidence", 5, 1) == [5]


def test_dreams_steps_are_points_of_time() -> None:
    """By hand for eight masks and four steps: times 1, 0.75025, 0.5005, 0.25075, 0.001."""
    assert [round(time_share(step, 4), 6) for step in range(4)] == [0.24975, 0.332889, 0.499001, 0.996012]
    # 8 * 0.24975 = 1.998, 7 * 0.332889 = 2.33, 5 * 0.499001 = 2.495, then all
    assert counts("maskgit_plus", 8, 4) == [1, 2, 2, 3]
    assert counts("entropy", 8, None) == [0, 1, 1, 1, 1, 1, 1, 2]
    assert counts("topk_margin", 3, 1) == [3]


def test_a_step_that_takes_nothing_is_passed_over() -> None:
    seq, block = sequence("entropy"), Block.fresh(1, 8, 0)
    skip_idle_steps(seq, block)
    assert block.steps == 1
    skip_idle_steps(seq, block)
    assert block.steps == 1, "planned again, it stays"


def test_origin_gives_every_position_its_own_chance() -> None:
    """Which positions take part in a step follows from the seed alone; the last step takes what is left."""
    for seed in range(20):
        seq, block = sequence("origin", 4, seed=seed), Block.fresh(3, 8, 0)
        drawn = [step_uniform(seed, 3 + j, 0) < time_share(0, 4) for j in range(8)]
        assert scheduled(seq, block) == sum(drawn)
        block.masked[0], block.steps = False, 1
        drawn = [step_uniform(seed, 3 + j, 1) < time_share(1, 4) for j in range(1, 8)]
        assert scheduled(seq, block) == sum(drawn)
        block.steps = 3
        assert scheduled(seq, block) == 7


def test_a_threshold_needs_no_points_of_time() -> None:
    assert scheduled(sequence("maskgit_plus", threshold=0.9), Block.fresh(1, 8, 0)) == 1
    assert scheduled(sequence("maskgit_plus", steps=2, threshold=0.9), Block.fresh(1, 8, 0)) == 4
    assert scheduled(sequence("maskgit_plus", unmasking="factor"), Block.fresh(1, 8, 0)) == 1


def test_scores_of_a_row() -> None:
    probabilities = torch.tensor([[[0.5, 0.3, 0.2, 0.0]]], dtype=torch.float64)
    logits = probabilities.log()
    assert margins(logits).item() == pytest.approx(0.2)
    entropy = -sum(p * math.log(p) for p in (0.5, 0.3, 0.2))
    assert certainties(logits).item() == pytest.approx(math.exp(-entropy))


def test_a_threshold_goes_with_the_orders_by_confidence_alone() -> None:
    assert {name for name, order in ORDERS.items() if order.score == "confidence"} == set(CONFIDENT)
