"""Fast-dLLM v2 against its published loop on transformers' module, token for token and pass for pass. If one fails,
the answers are not those of the model that the user chose, or cost more passes than they need."""

from __future__ import annotations

import pytest

from tests.engine.decoding.blocks.cases import ORDERS, check
from tests.engine.decoding.blocks.conftest import Pairs


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("name", "count"), [("fast_dllm_v2", 100), ("fast_dllm_v2_32", 24)])
@pytest.mark.parametrize("order", ORDERS["fast_dllm_v2"])
def test_writes_what_the_published_loop_writes(
    block_pairs: Pairs, order: str, name: str, count: int, dtype: str
) -> None:
    """Prompts and limits on both sides of a block's boundary; ends early, late and never."""
    seen = check(block_pairs(name, dtype), order, count, shared_commit=True)
    assert min(seen["stop"], seen["length"], seen["commits"]) > count // 20
