"""Expert layers against a loop over experts, and their routers against transformers'. If one fails, tokens go to
experts that were not trained for them, and the answers of every mixture model are nonsense."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeTopkRouter
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

from engine.models.elementwise import Elementwise
from engine.models.mlp.config import ExpertConfig
from engine.models.mlp.experts import Experts, GroupedExperts, SeparateExperts
from engine.models.mlp.mixture import MixtureMLP
from engine.models.mlp.router import Router

CPU = torch.device("cpu")
HIDDEN, INNER = 24, 16
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 0.05}
"""Of sums of about 1."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def expert_config(**traits: Any) -> ExpertConfig:
    base: dict[str, Any] = {
        "num_experts": 16, "per_token": 4, "intermediate_size": INNER, "scoring": "softmax", "renormalised": True,
    }  # fmt: skip
    return ExpertConfig(**(base | traits))


def filled(part: Any, seed: int = 0) -> Any:
    """A part with random weights."""
    generator = torch.Generator().manual_seed(seed)
    for target in part.targets().values():
        target.fill_normal(target.shape[-1] ** -0.5, generator)
    return part


def by_a_loop(
    weights: dict[str, torch.Tensor], x: torch.Tensor, counts: torch.Tensor, chosen: torch.Tensor
) -> torch.Tensor:
    """The weighed sum of each row's experts, expert after expert."""
    total = torch.zeros_like(x)
    for number in range(int(chosen.max()) + 1):
        rows, place = torch.where(chosen == number)
        gate, up, down = (weights[f"{number}.{part}_proj.weight"] for part in ("gate", "up", "down"))
        own = F.linear(F.silu(F.linear(x[rows], gate)) * F.linear(x[rows], up), down)
        total.index_add_(0, rows, own * counts[rows, place, None])
    return total


def experts_of(kind: str, config: ExpertConfig, dtype: torch.dtype) -> Experts:
    made: Experts = GroupedExperts(config, HIDDEN, dtype, CPU) if kind == "grouped" else SeparateExperts(
        config, HIDDEN, dtype, CPU, kind
    )  # fmt: skip
    filled(made)
    return made


KINDS = [
    ("dense", torch.float64), ("dense", torch.float32), ("dense", torch.bfloat16), ("packed", torch.float32),
    ("grouped", torch.float32), ("grouped", torch.bfloat16),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "dtype"), KINDS)
@torch.inference_mode()
def test_one_product_equals_a_loop_over_experts(kind: str, dtype: torch.dtype) -> None:
    """Any number of rows; some experts are chosen by none of them, and one by all."""
    config = expert_config(num_experts=64, per_token=8)
    experts = experts_of(kind, config, dtype)
    weights = {name: target.values() for name, target in experts.targets().items()}
    generator = torch.Generator().manual_seed(1)
    for rows in (1, 3, 32, 256):
        x, total = (torch.randn((rows, HIDDEN), generator=generator).to(dtype) for _ in range(2))
        scores = torch.rand((rows, 64), generator=generator)
        scores[:, 5] = 2.0
        counts, chosen = scores.topk(8)
        counts = (counts / counts.sum(dim=-1, keepdim=True)).to(dtype)
        expected = total + by_a_loop(weights, x, counts, chosen)
        experts.add_to(total, x, counts, chosen, Elementwise(1e-6, dtype, CPU))
        torch.testing.assert_close(total, expected, rtol=0, atol=TOLERANCE[dtype])


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 12), experts=st.integers(1, 9), data=st.data())
@torch.inference_mode()
def test_a_row_depends_on_its_own_experts_alone(rows: int, experts: int, data: st.DataObject) -> None:
    """A request's answer would change with its company."""
    per_token = data.draw(st.integers(1, experts))
    config = expert_config(num_experts=experts, per_token=per_token)
    mlp = filled(MixtureMLP(config, HIDDEN, torch.float64, CPU, "dense"), data.draw(st.integers(0, 99)))
    x = torch.randn((rows, HIDDEN), generator=torch.Generator().manual_seed(rows), dtype=torch.float64)
    elementwise = Elementwise(1e-6, torch.float64, CPU)
    together = torch.zeros_like(x)
    mlp.add_to(together, x, elementwise)
    for row in range(rows):
        alone = torch.zeros((1, HIDDEN), dtype=torch.float64)
        mlp.add_to(alone, x[row : row + 1], elementwise)
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-12)


@pytest.mark.parametrize("renormalised", [False, True])
@torch.inference_mode()
def test_softmax_routers_choose_as_transformers_do(renormalised: bool) -> None:
    config = expert_config(num_experts=32, per_token=8, renormalised=renormalised)
    router = filled(Router(config, HIDDEN, torch.float32, CPU))
    shape = transformers.Qwen3MoeConfig(
        hidden_size=HIDDEN, num_experts=32, num_experts_per_tok=8, norm_topk_prob=renormalised
    )
    theirs = Qwen3MoeTopKRouter(shape)
    theirs.weight.copy_(router.weight)
    agree(router, theirs)


@pytest.mark.parametrize("renormalised", [False, True])
@pytest.mark.parametrize(("groups", "kept"), [(1, 1), (4, 2), (8, 4)])
@torch.inference_mode()
def test_sigmoid_routers_choose_as_transformers_do(groups: int, kept: int, renormalised: bool) -> None:
    """Groups, choice bias, scaling: LLaDA2's experts would be others."""
    config = expert_config(
        num_experts=32, per_token=8, scoring="sigmoid", renormalised=renormalised, choice_bias=True, num_groups=groups,
        groups_kept=kept, scaling=2.5,
    )  # fmt: skip
    router = filled(Router(config, HIDDEN, torch.float32, CPU))
    shape = transformers.Glm4MoeConfig(
        hidden_size=HIDDEN, n_routed_experts=32, num_experts_per_tok=8, n_group=groups, topk_group=kept,
        routed_scaling_factor=2.5, norm_topk_prob=renormalised,
    )  # fmt: skip
    theirs = Glm4MoeTopkRouter(shape)
    theirs.weight.copy_(router.weight)
    assert router.choice_bias is not None
    theirs.e_score_correction_bias.copy_(router.choice_bias)
    agree(router, theirs)


def agree(router: Router, theirs: Any) -> None:
    """The same experts for 500 rows, with the same weights."""
    x = torch.randn((500, HIDDEN), generator=torch.Generator().manual_seed(2))
    weights, chosen = router.choose(x)
    _, wanted, own = theirs(x)
    places, expected = (found.argsort(dim=-1) for found in (chosen, own))
    assert torch.equal(chosen.gather(1, places), own.gather(1, expected))
    torch.testing.assert_close(weights.gather(1, places), wanted.gather(1, expected), rtol=0, atol=1e-6)


@torch.inference_mode()
def test_a_router_scores_in_float32_whatever_the_model_is_in() -> None:
    """Two experts that are nearly alike would change places with every rounding of bfloat16."""
    router = filled(Router(expert_config(), HIDDEN, torch.bfloat16, CPU))
    x = torch.randn((64, HIDDEN)).bfloat16()
    weights, chosen = router.choose(x)
    expected = (x.float() @ router.weight.t()).softmax(dim=-1).topk(4)
    assert (router.weight.dtype, weights.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(chosen, expected.indices)


@torch.inference_mode()
def test_the_shared_expert_is_added_unweighed() -> None:
    mlp = filled(MixtureMLP(expert_config(shared_size=8), HIDDEN, torch.float64, CPU, "dense"))
    x, total = (torch.randn((5, HIDDEN), dtype=torch.float64) for _ in range(2))
    weights = {name: target.values() for name, target in mlp.targets().items()}
    gate, up, down = (weights[f"shared_experts.{part}_proj.weight"] for part in ("gate", "up", "down"))
    routed = by_a_loop(
        {name.removeprefix("experts."): tensor for name, tensor in weights.items()}, x, *mlp.router.choose(x)
    )
    expected = total + routed + F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)
    mlp.add_to(total, x, Elementwise(1e-6, torch.float64, CPU))
    torch.testing.assert_close(total, expected)
