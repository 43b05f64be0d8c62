"""The decoder's elementwise kernels against torch's own operations. If one fails, every answer of a GPU is wrong."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("tests.engine.gpu.interpreted", exc_type=ImportError)

from engine.gpu.elementwise import SILU_MUL_BLOCK, TritonElementwise
from engine.models.elementwise import Elementwise
from engine.models.rope import QueryScaling, RopeConfig, RotaryTable

torch.set_num_threads(1)

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2e-2}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE)


def both(dtype: torch.dtype) -> tuple[TritonElementwise, Elementwise]:
    return TritonElementwise(1e-5, dtype, CPU), Elementwise(1e-5, dtype, CPU)


@DTYPES
@pytest.mark.parametrize("scaling", [None, QueryScaling(beta=0.5, original_max_positions=4)])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 2), (5, 1)])
def test_heads_are_turned_and_queries_scaled(
    dtype: torch.dtype, scaling: QueryScaling | None, num_heads: int, num_kv_heads: int
) -> None:
    heads, head_dim = num_heads + num_kv_heads, 32
    table = RotaryTable(RopeConfig(theta=1e4, query_scaling=scaling), head_dim, 40, dtype, CPU)
    rotation = table.rows(torch.tensor([0, 3, 4, 39, 17]))
    fused = torch.randn(5, heads + num_kv_heads, head_dim).to(dtype)  # v follows, as in the decoder's product
    kernels, reference = both(dtype)
    expected = reference.rotate(fused[:, :heads].clone(), num_heads, rotation)
    v = fused[:, heads:].clone()
    found = kernels.rotate(fused[:, :heads], num_heads, rotation)
    for part, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(part, wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert torch.equal(fused[:, heads:], v)


def test_heads_need_not_be_contiguous() -> None:
    table = RotaryTable(RopeConfig(theta=1e4), 32, 8, torch.float32, CPU)
    rotation = table.rows(torch.tensor([1, 7]))
    qk = torch.randn(2, 32, 3).transpose(1, 2)
    kernels, reference = both(torch.float32)
    expected = reference.rotate(qk.clone(), 2, rotation)
    for part, wanted in zip(kernels.rotate(qk, 2, rotation), expected, strict=True):
        torch.testing.assert_close(part, wanted, rtol=1e-6, atol=1e-6)


@DTYPES
@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # a closed gate: x / infinity
@pytest.mark.parametrize("size", [48, SILU_MUL_BLOCK, SILU_MUL_BLOCK + 16])
def test_the_gate_opens_as_far_as_torchs(dtype: torch.dtype, size: int) -> None:
    gate_up = (4 * torch.randn(3, 2 * size)).to(dtype)
    gate_up[0, 0], gate_up[1, 1] = 90.0, -90.0
    kernels, reference = both(dtype)
    found, expected = kernels.silu_mul(gate_up.clone()), reference.silu_mul(gate_up)
    torch.testing.assert_close(found, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
