"""Rounding of weights. If one fails, a quantized model answers worse than its format must, or noise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.models.linear.quantized_weight import QuantizedWeight, by_channel, by_group

SCALES = st.sampled_from([0.0, 1e-20, 1e-3, 1.0, 300.0])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1000), scale=SCALES, offset=SCALES)
def test_rounding_is_off_by_half_a_step_at_most(seed: int, scale: float, offset: float) -> None:
    """Of rows of zeros, of tiny and of large elements, and of those that are all alike."""
    rows = torch.randn(5, 64, generator=torch.Generator().manual_seed(seed)) * scale + offset
    rounding = 1e-5 * (scale + offset)
    channel, group = by_channel(rows), by_group(rows, 32)
    assert ((channel.dequantize() - rows).abs() <= channel.scales / 2 + rounding).all()
    steps = group.scales.repeat_interleave(32, dim=1)
    assert ((group.dequantize() - rows).abs() <= steps / 2 + rounding).all()
    assert channel.values.abs().max() <= 127
    assert -8 <= int(group.values.min()) <= int(group.values.max()) <= 7


def test_an_element_is_its_value_less_its_groups_zero_times_its_groups_scale() -> None:
    values = torch.tensor([[1, -2, 3, 4]], dtype=torch.int8)
    weight = QuantizedWeight(values, torch.tensor([[2.0, 10.0]]), torch.tensor([[1, -1]]), bits=4)
    assert weight.dequantize().tolist() == [[0.0, -6.0, 40.0, 50.0]]
    assert weight.group_size == 2
    assert QuantizedWeight(values, torch.tensor([[0.5]])).dequantize().tolist() == [[0.5, -1.0, 1.5, 2.0]]
    assert QuantizedWeight(values, torch.tensor([[0.5]])).group_size is None


@pytest.mark.parametrize("bits", [8, 4])
def test_what_is_quantized_already_stays_as_it_is(bits: int) -> None:
    """Loading a part once more would drift."""
    rows = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    once = by_channel(rows) if bits == 8 else by_group(rows, 32)
    again = by_channel(once.dequantize()) if bits == 8 else by_group(once.dequantize(), 32)
    assert torch.equal(once.values, again.values)
