"""The choosing kernels against engine.sampling, in Triton's interpreter. If one fails, a GPU samples another text than
a CPU for the same seed, or ignores a parameter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tests.engine.gpu.interpreted", exc_type=ImportError)

import triton
import triton.language as tl

from engine.gpu import choice as triton_choice
from engine.gpu import choice_kernels
from engine.gpu.choice import TritonChoice
from engine.request import SamplingParams
from engine.sampling.chosen import Chosen
from engine.sampling.filters import filter_top
from engine.sampling.history import TokenHistory
from engine.sampling.noise import gumbel_noise
from engine.sampling.picker import Picked
from engine.sampling.sampler import Sampler
from tests.engine.sampling.test_sampler import BANNED, MIXED, V, group

torch.set_num_threads(1)

CPU = torch.device("cpu")
GREEDY = SamplingParams(temperature=0.0)
INFINITY = float("inf")


@pytest.fixture(autouse=True)
def _several_blocks_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_choice, "MAX_BLOCK", 16)


def pick(logits: torch.Tensor, params: list[SamplingParams], seed: int = 0) -> Picked:
    n, r = logits.shape[:2]
    positions = seed + torch.arange(n * r).view(n, r)
    return TritonChoice(BANNED, CPU).pick(logits.clone(), params, positions)


def samplers() -> tuple[Sampler, Sampler]:
    kernel = TritonChoice(BANNED, CPU)
    return Sampler(BANNED, TokenHistory(16, V, CPU), CPU, kernel), Sampler(BANNED, TokenHistory(16, V, CPU), CPU)


def check(logits: torch.Tensor, **how: Any) -> tuple[Chosen, Chosen]:
    """Both samplers on the same logits of requests of every kind."""
    n, r = logits.shape[:2]
    positions = 30 + torch.arange(n * r).view(n, r)
    seqs = group(MIXED)[:n]
    found, expected = (sampler.choose(logits.clone(), seqs, positions, **how) for sampler in samplers())
    assert torch.equal(found.token_ids, expected.token_ids)
    assert torch.equal(found.finite, expected.finite)
    torch.testing.assert_close(found.log_probabilities(), expected.log_probabilities(), rtol=1e-5, atol=2e-6)
    return found, expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_parameter_of_a_request_chooses_alike(dtype: torch.dtype) -> None:
    found, expected = check((2 * torch.randn(len(MIXED), 2, V)).to(dtype))
    torch.testing.assert_close(found.logits.float(), expected.logits.float())  # alternatives are read from them


def test_drafts_count_as_history() -> None:
    logits = 2 * torch.randn(len(MIXED), 3, V)
    drafts = torch.randint(5, V, (len(MIXED), 3))
    check(logits, unsettled=drafts, cumulative=True)


def test_requests_without_edits_take_no_other_pass_over_the_logits() -> None:
    """Bans included: the logits of a greedy or sampled request are read by the kernel alone."""
    logits = torch.randn(1, 2, V).to(torch.bfloat16)
    found, _ = check(logits)
    assert found.logits.dtype == torch.bfloat16
    assert (found.logits[..., list(BANNED)] == -INFINITY).all()


@triton.jit
def noise_rows(out_ptr, low_ptr, high_ptr, place_ptr, SIZE: tl.constexpr) -> None:
    ids = tl.arange(0, SIZE)
    first, second = choice_kernels._noise_keys(tl.load(low_ptr), tl.load(high_ptr), tl.load(place_ptr))
    tl.store(out_ptr + ids, choice_kernels._gumbel(ids, first, second))


@pytest.mark.parametrize("seed", [0, 1, 2**31 + 5, 2**53 - 1])
@pytest.mark.parametrize("position", [0, 100_000])
def test_the_noise_is_the_one_of_every_device(seed: int, position: int) -> None:
    """The same seed would give another text on a GPU than on a CPU."""
    found = torch.empty(8192)
    low = torch.tensor([seed & 0xFFFFFFFF]).to(torch.int32)
    noise_rows[(1,)](found, low, torch.tensor([seed >> 32], dtype=torch.int32), torch.tensor([position]), SIZE=8192)
    expected = gumbel_noise(torch.tensor([seed]), torch.tensor([[position]]), 8192)[0, 0]
    ulp = np.spacing(expected.abs().clamp(min=1.0).numpy())
    assert (np.abs(found.numpy() - expected.numpy()) <= 4 * ulp).all()


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(seed=3), SamplingParams(seed=3, top_k=5, top_p=0.9)])
def test_of_equals_the_first_is_the_likeliest(params: SamplingParams) -> None:
    logits = torch.zeros(1, 1, V)
    logits[..., [7, 20, 33]] = 40.0
    token = int(pick(logits, [params]).token_ids)
    assert token == 7 if params.temperature == 0 else token in (7, 20, 33)


@pytest.mark.parametrize("broken", [torch.nan, INFINITY, -INFINITY])
@pytest.mark.parametrize("column", [BANNED[0], 17, V - 1])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_broken_row_is_told_and_spoils_no_other(broken: float, column: int) -> None:
    """A NaN under a banned token came from the same arithmetic as its neighbours."""
    logits = torch.randn(3, 2, V)
    logits[1, 1, column] = broken
    picked = pick(logits, [GREEDY, SamplingParams(seed=1, top_p=0.8), SamplingParams(seed=2)])
    assert picked.finite.tolist() == [True, False, True]
    assert picked.logprobs[[0, 2]].isfinite().all()
    assert ((picked.token_ids >= 0) & (picked.token_ids < V)).all()


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**53 - 1),
    temperature=st.sampled_from([0.2, 1.0, 1.7]),
    top_k=st.integers(0, V + 3),
    top_p=st.sampled_from([0.0, 1e-6, 0.31, 0.77, 0.971, 1.0]),
    levels=st.sampled_from([1, 3, 1000]),
)
def test_filters_keep_what_sorting_keeps(seed: int, temperature: float, top_k: int, top_p: float, levels: int) -> None:
    """Few levels: nearly all logits are equal to others, as in half precision, and ids decide."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(levels, (1, 1, V), generator=generator) * (5.0 / levels)
    kept = filter_top(
        logits / temperature, torch.tensor(top_k or V).view(1, 1, 1), torch.tensor(top_p).view(1, 1, 1)
    ).isfinite()
    choice = TritonChoice((), CPU)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    positions = torch.tensor([[5]])
    noise = gumbel_noise(torch.tensor([seed]), positions, V)
    expected = (logits / temperature).masked_fill(~kept, -INFINITY).add(noise).argmax(-1)
    assert torch.equal(choice.pick(logits, [params], positions).token_ids, expected)


def test_a_top_k_beyond_the_vocabulary_keeps_all_of_it() -> None:
    """The API allows up to 2**31, which is no int32."""
    logits = torch.randn(1, 2, V)
    picked = [pick(logits, [SamplingParams(seed=4, top_k=top_k)]).token_ids for top_k in (0, 2**31)]
    assert torch.equal(*picked)


def test_sampled_tokens_need_positions_and_rows_one_after_another() -> None:
    choice = TritonChoice(BANNED, CPU)
    with pytest.raises(ValueError, match="positions are needed"):
        choice.pick(torch.zeros(1, 1, V), [SamplingParams()], None)
    with pytest.raises(ValueError, match="one after another"):
        choice.pick(torch.zeros(1, V, 2).transpose(1, 2), [GREEDY], None)
