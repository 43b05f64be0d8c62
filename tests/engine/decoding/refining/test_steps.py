"""The parts of a refining step. If one fails, canvases keep what they should not, or stop too early or never."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import EngineConfig
from engine.decoding.policies.refine import entropies_of, within_bound
from engine.errors import ConfigError
from engine.runner.kernels import make_kernels
from tests.engine.decoding.refining.conftest import Pair
from tests.reference.refining.checkpoints import CANVAS


@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(st.lists(st.floats(0, 3), min_size=1, max_size=12), st.floats(0.01, 4))
def test_positions_are_kept_in_the_order_of_entropy(entropies: list[float], bound: float) -> None:
    """One by one: each as long as the entropies of those before it come to no more than the bound."""
    kept = within_bound(torch.tensor([entropies], dtype=torch.float64), bound)[0].tolist()
    total, expected = 0.0, set()
    for place in sorted(range(len(entropies)), key=lambda place: entropies[place]):
        if total > bound + 1e-9:
            break
        expected.add(place)
        total += entropies[place]
        if abs(total - bound) <= 1e-9:
            return  # a tie that rounding decides
    assert {place for place, own in enumerate(kept) if own} == expected
    assert sum(kept) >= 1


def test_entropy_of_what_is_certain_of_what_is_open_and_of_what_is_barred() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [9.0, -math.inf, -math.inf, -math.inf], [1.0, 1.0, -math.inf, -200.0]])
    expected = torch.tensor([math.log(4), 0.0, math.log(2)])
    torch.testing.assert_close(entropies_of(logits.double()), expected.double(), rtol=0, atol=1e-6)


def test_kernels_without_windows_are_refused_by_name(pair: Pair) -> None:
    """They would attend as if all layers were alike."""
    engine = pair[0](max_block_length=CANVAS)
    with pytest.raises(ConfigError, match="'triton' cannot run this model"):
        make_kernels("triton", engine.runner.pool, engine.runner.decoder, ())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_block_length": CANVAS - 1}, "max_block_length"),
        ({"kv_cache_tokens": CANVAS - 1, "page_size": 1}, "not one block of 8"),
        ({"max_model_len": 60, "kv_cache_tokens": 64}, "fewer than max_model_len"),
    ],
)
def test_a_server_too_small_for_a_canvas_does_not_start(pair: Pair, options: dict[str, int], words: str) -> None:
    """It would start, and fail at the first request, or at the longest."""
    with pytest.raises(ConfigError, match=words):
        pair[0](**{"max_block_length": CANVAS, "max_infill_window": 0} | options)


def test_the_longest_text_has_room_for_its_last_canvas(pair: Pair) -> None:
    """The last canvas may reach beyond the longest text; its pages are there."""
    engine = pair[0](max_block_length=CANVAS, max_infill_window=0, kv_cache_tokens=64, page_size=4)
    assert engine.info.max_model_len == 64 - (CANVAS - 1)
    assert engine.runner.pool.page_table.shape[1] * 4 >= engine.info.max_model_len + CANVAS - 1
    assert EngineConfig().max_block_length < 256, "the preset has to raise it"
