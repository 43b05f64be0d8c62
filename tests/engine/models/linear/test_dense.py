"""Weights and their products. If one fails, a checkpoint's rows end up in the wrong place, or a product is not one."""

from __future__ import annotations

import pytest
import torch

from engine.models.adapter import DraftAdapter, LowRankUpdate
from engine.models.linear.base import TensorTarget
from engine.models.linear.dense import DenseLinear
from engine.models.linear.storages import LINEARS

CPU, META = torch.device("cpu"), torch.device("meta")
PARTS = {"q": 6, "k": 3, "v": 3}


def filled(bias: bool = False, dtype: torch.dtype = torch.float64) -> DenseLinear:
    """q, k and v of 4 inputs, with random values."""
    linear = DenseLinear.empty(PARTS, 4, dtype, CPU, bias)
    generator = torch.Generator().manual_seed(0)
    for target in linear.targets().values():
        target.fill_normal(1.0, generator)
    return linear


@pytest.mark.parametrize("bias", [False, True])
def test_the_product_is_that_of_the_rows_loaded(bias: bool) -> None:
    linear = filled(bias)
    values = {name: target.values() for name, target in linear.targets().items()}
    x = torch.randn(5, 4, dtype=torch.float64)
    expected = torch.cat([x @ values[f"{part}.weight"].T for part in PARTS], dim=1)
    if bias:
        expected += torch.cat([values[f"{part}.bias"] for part in PARTS])
    torch.testing.assert_close(linear(x), expected)


def test_the_product_is_added_to_a_residual_in_place() -> None:
    linear, x = filled(), torch.randn(5, 4, dtype=torch.float64)
    total = torch.randn(5, 12, dtype=torch.float64)
    expected = total + linear(x)
    linear.add_to(total, x)
    torch.testing.assert_close(total, expected)


def test_a_part_is_loaded_into_its_own_rows_whatever_its_type() -> None:
    """k in place of v would answer noise."""
    linear = filled()
    before = linear.weight.clone()
    stored = torch.randn(3, 4, dtype=torch.float32)
    linear.load("k", stored)
    assert torch.equal(linear.weight[6:9], stored.double())
    assert torch.equal(linear.weight[:6], before[:6])
    assert torch.equal(linear.weight[9:], before[9:])
    x = torch.randn(2, 4, dtype=torch.float64)
    torch.testing.assert_close(linear(x)[:, 6:9], x @ stored.double().T)


def test_what_a_checkpoint_must_bring_has_names_and_shapes() -> None:
    targets = filled(bias=True).targets()
    assert {name: target.shape for name, target in targets.items()} == {
        "q.weight": (6, 4), "k.weight": (3, 4), "v.weight": (3, 4), "q.bias": (6,), "k.bias": (3,), "v.bias": (3,),
    }  # fmt: skip
    assert list(filled().targets()) == ["q.weight", "k.weight", "v.weight"]


def test_a_cpu_stores_columns_and_others_rows() -> None:
    """A product of a few rows takes up to twice as long on a CPU otherwise."""
    assert filled().weight.stride() == (1, 12)
    assert DenseLinear.empty(PARTS, 4, torch.float32, META).weight.stride() == (4, 1)


def test_bytes_and_operations_are_those_of_one_product() -> None:
    plain, biased = (DenseLinear.empty(PARTS, 4, torch.bfloat16, META, bias) for bias in (False, True))
    assert (plain.num_bytes, plain.operations) == (2 * 48, 2 * 48)
    assert (biased.num_bytes, biased.operations) == (2 * (48 + 12), 2 * 48)


def test_storages_are_found_by_name() -> None:
    made = LINEARS["dense"]({"down": 3}, 2, torch.float32, CPU, False)
    assert isinstance(made, DenseLinear)
    assert (made.parts, made.inputs, made.outputs) == ({"down": 3}, 2, 3)


def test_a_tied_matrix_shares_its_memory() -> None:
    """The largest matrix of a small model would be stored twice."""
    embedding = torch.randn(7, 4)
    head = DenseLinear({"lm_head": 7}, embedding)
    embedding[2] = 0
    assert not head(torch.randn(3, 4))[:, 2].any()


def test_a_target_shows_what_it_holds_and_can_be_filled() -> None:
    tensor = torch.zeros(3)
    target = TensorTarget(tensor)
    target.fill(2.0)
    assert tensor.tolist() == [2.0] * 3
    target.load(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    assert target.values().tolist() == tensor.tolist() == [1.0, 2.0, 3.0]


def test_a_low_rank_update_applies_to_the_scaled_rows_alone() -> None:
    """What verifies would get the draft's weights."""
    update = LowRankUpdate(2, 4, 6, torch.float64, CPU)
    generator = torch.Generator().manual_seed(1)
    for target in update.targets().values():
        target.fill_normal(1.0, generator)
    weights = {name: target.values() for name, target in update.targets().items()}
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == {
        "lora_A.weight": (2, 4),
        "lora_B.weight": (6, 2),
    }
    total, x = torch.randn(3, 6, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    scale = torch.tensor([[DraftAdapter(rank=2, alpha=8).scale], [0.0], [1.0]], dtype=torch.float64)
    expected = total + scale * (x @ weights["lora_A.weight"].T @ weights["lora_B.weight"].T)
    update.add_to(total, x, scale)
    torch.testing.assert_close(total, expected)
    assert scale[0] == 4.0
