"""Log-probabilities and the check for finite logits. If one fails, clients read wrong numbers or false errors."""

from __future__ import annotations

import torch

from engine.sampling.logprobs import all_finite, log_probabilities, top_log_probabilities

V = 40


def random_logits(n: int, r: int) -> torch.Tensor:
    return 2 * torch.randn(n, r, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_logits_of_a_half_type_may_add_up_beyond_its_range() -> None:
    """65504 for float16: every pass of a model with a large vocabulary would be called broken."""
    assert all_finite(torch.full((1, 1, 131072), -1.0, dtype=torch.float16)).tolist() == [True]
    assert all_finite(torch.tensor([[[1.0, torch.inf]], [[torch.nan, 0.0]]], dtype=torch.float16)).tolist() == [
        False, False,
    ]  # fmt: skip


def test_log_probabilities_are_log_softmax() -> None:
    logits = random_logits(2, 3)
    tokens = torch.tensor([[0, 1, 2], [5, 6, 39]])
    wanted = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    torch.testing.assert_close(log_probabilities(logits, tokens), wanted)


def test_the_likeliest_come_first_and_are_no_more_than_there_are() -> None:
    logits = random_logits(2, 3)
    for count in (1, 5, V, 2 * V):
        ids, values = top_log_probabilities(logits, count)
        wanted = logits.log_softmax(-1).sort(dim=-1, descending=True)
        assert torch.equal(ids, wanted.indices[..., :count])
        torch.testing.assert_close(values, wanted.values[..., :count])
