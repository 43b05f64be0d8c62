"""SDAR-30B-A3B and LLaDA2.0 against their published loops on transformers' mixture modules, token for token and pass
for pass. If one fails, the answers are not those of the model that was chosen, or cost more passes than they need."""

from __future__ import annotations

import pytest

from tests.engine.decoding.blocks.cases import ORDERS, check
from tests.engine.decoding.blocks.conftest import Pairs

CASES = [(name, order) for name in ("sdar_moe", "llada2") for order in ORDERS[name]]


@pytest.mark.parametrize(("name", "order"), CASES)
def test_writes_what_the_published_loop_writes(block_pairs: Pairs, name: str, order: str) -> None:
    """Prompts and limits on both sides of a block's boundary; ends early, late and never."""
    seen = check(block_pairs(name, "float64"), order, 200 // len(ORDERS[name]) + 1, shared_commit=True)
    assert min(seen["stop"], seen["length"], seen["commits"]) > 5
    assert not seen["near ties"]
