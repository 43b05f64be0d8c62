"""Filters and the best score. If one fails, tokens that a request has cut off are sampled, or others are lost."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from engine.sampling.filters import best_tokens, filter_top
from tests.reference import sampling as reference

V = 40
INFINITY = float("inf")


def filtered(scores: list[float], top_k: int = 99, top_p: float = 1.0) -> list[int]:
    """The tokens that `filter_top` keeps."""
    row = torch.tensor(scores, dtype=torch.float64)[None, None]
    kept = filter_top(row, torch.tensor([[[top_k]]]), torch.tensor([[[top_p]]], dtype=torch.float64))[0, 0]
    assert torch.equal(kept[kept > -INFINITY], row[0, 0][kept > -INFINITY]), "a kept score was changed"
    return torch.nonzero(kept > -INFINITY).ravel().tolist()


def test_equal_scores_are_kept_by_token_id() -> None:
    """So that the result does not depend on how a device sorts."""
    assert filtered([1.0, 2.0, 2.0, 2.0, 0.0], top_k=2) == [1, 2]
    assert filtered([0.0] * 10, top_k=3) == [0, 1, 2]
    assert filtered([0.0] * 10, top_p=0.25) == [0, 1, 2]


def test_top_p_keeps_the_smallest_set_of_that_mass() -> None:
    scores = [math.log(p) for p in (0.1, 0.4, 0.2, 0.3)]
    assert filtered(scores, top_p=0.39) == [1]
    assert filtered(scores, top_p=0.41) == [1, 3]
    assert filtered(scores, top_p=0.71) == [1, 2, 3]
    assert filtered(scores, top_p=0.95) == [0, 1, 2, 3]


def test_top_p_counts_the_mass_that_top_k_left() -> None:
    """0.4 and 0.3 are 57 and 43 percent of what top_k=2 leaves."""
    scores = [math.log(p) for p in (0.1, 0.4, 0.2, 0.3)]
    assert filtered(scores, top_k=2, top_p=0.5) == [1]
    assert filtered(scores, top_k=2, top_p=0.6) == [1, 3]


def test_top_p_of_one_keeps_tokens_beyond_rounding() -> None:
    """A cumulated mass that rounds to 1 early must not cut off the tail."""
    assert filtered([0.0, -50.0, -60.0, -700.0], top_p=1.0) == [0, 1, 2, 3]


def test_banned_tokens_stay_out_and_do_not_count() -> None:
    assert filtered([0.0, -INFINITY, 0.0, -INFINITY], top_p=0.9) == [0, 2]
    assert filtered([-INFINITY, 1.0, -INFINITY], top_k=2, top_p=0.5) == [1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_filters_equal_a_naive_loop(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        scores = torch.tensor(rng.normal(0, 2, V)).to(dtype)
        top_k, top_p = int(rng.integers(1, V + 5)), float(rng.uniform(0.05, 1))
        ours = filter_top(scores[None, None], torch.tensor([[[top_k]]]), torch.tensor([[[top_p]]], dtype=dtype))[0, 0]
        naive = reference.keep(scores.double().numpy(), top_k, top_p, 0.0)
        assert ((ours > -INFINITY).numpy() == (naive > -INFINITY)).all()


def test_of_equal_scores_the_first_is_best() -> None:
    """On every device: a tie that each breaks its own way would make answers depend on the machine."""
    scores = torch.zeros(2, 1, V)
    scores[1, 0, [4, 7]] = 1.0
    assert best_tokens(scores).tolist() == [[0], [4]]
    assert best_tokens(scores).dtype == torch.int64
