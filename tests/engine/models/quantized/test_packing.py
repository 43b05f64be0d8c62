"""Small numbers in words. If one fails, every weight of a packed checkpoint is another one."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.models.quantized.packing import AWQ_ORDER, add_one_to_each, centred, unpack
from tests.engine.models.quantized.writers import AWQ_COLUMNS, pack

BITS = st.sampled_from([2, 4, 8])


@st.composite
def tables(draw: st.DrawFn, bits: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    rows, columns = draw(st.integers(1, 5)), 32 // bits * draw(st.integers(1, 4))
    seed = draw(st.integers(0, 2**32 - 1))
    return np.random.default_rng(seed).integers(0, 1 << bits, (rows, columns))


@given(st.data(), BITS)
def test_what_was_packed_comes_back(data: st.DataObject, bits: int) -> None:
    """Along either dimension, the highest bit of a word (its sign) included."""
    numbers = data.draw(tables(bits))
    expected = torch.from_numpy(numbers).int()
    assert torch.equal(unpack(pack(numbers, bits), bits, 1), expected)
    assert torch.equal(unpack(pack(numbers, bits).t(), bits, 0), expected.t())


@given(st.data())
def test_awq_order_is_undone(data: st.DataObject) -> None:
    numbers = data.draw(tables(4))
    assert torch.equal(unpack(pack(numbers, 4, AWQ_COLUMNS), 4, 1, AWQ_ORDER), torch.from_numpy(numbers).int())


@given(st.data(), BITS)
def test_one_is_added_with_borrows_undone(data: st.DataObject, bits: int) -> None:
    """GPTQ's first version stores zero points less one, in whole words: a zero point 0 changes its neighbours."""
    numbers = data.draw(tables(bits))
    words = pack(numbers, bits)
    ones = sum(1 << shift for shift in range(0, 32, bits))
    less = (words.numpy().view(np.uint32) - np.uint32(ones)).view(np.int32)
    assert torch.equal(add_one_to_each(torch.from_numpy(less), bits), words)


def test_numbers_are_moved_to_the_middle() -> None:
    """An 8-bit number above 127 would overflow int8."""
    assert centred(torch.tensor([[0, 128, 255]]), 8).tolist() == [[-128, 0, 127]]
    assert centred(torch.tensor([[0, 8, 15]]), 4).tolist() == [[-8, 0, 7]]
