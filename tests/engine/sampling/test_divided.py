"""Plain choices from parts of the vocabulary are those from the whole of it.

If one fails, a model that is divided among ranks samples other tokens than the same model on one, or is confident of
them to another degree.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.request import SamplingParams
from engine.sampling.divided import DividedLogits, PlainChoice, best_of_part, combine, is_plain
from engine.sampling.history import TokenHistory
from engine.sampling.noise import gumbel_noise, noise_bits
from engine.sampling.picker import Picked
from engine.sampling.sampler import Sampler
from engine.sequence import Sequence
from tests.engine.driving import ask

CPU = torch.device("cpu")
BANNED = (5, 40)
VOCABULARY = 48


class Parts(DividedLogits):
    """Logits in equal parts, all in this process."""

    device = CPU

    def __init__(self, logits: torch.Tensor, size: int) -> None:
        self.parts = [part.clone() for part in logits.chunk(size, dim=-1)]
        self.brought_together = 0

    def whole(self) -> torch.Tensor:
        self.brought_together += 1
        return torch.cat(self.parts, dim=-1)

    def pick(self, choice: PlainChoice, positions: torch.Tensor | None) -> Picked:
        length = self.parts[0].shape[-1]
        found = [best_of_part(own, i * length, BANNED, choice, positions) for i, own in enumerate(self.parts)]
        return combine(found, torch.promote_types(self.parts[0].dtype, torch.float32))


def sampler() -> Sampler:
    return Sampler(BANNED, TokenHistory(8, VOCABULARY, CPU), CPU)


def sequences(params: Rows[dict[str, Any]]) -> list[Sequence]:
    found = []
    for i, own in enumerate(params):
        barred = frozenset(own.pop("barred", ()))
        seq = Sequence(ask(f"r{i}", [7, 8, 9], **own), frozenset({2}), i, barred_token_ids=barred)
        seq.row = i
        found.append(seq)
    return found


def plain_params() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "temperature": st.sampled_from((0.0, 0.0, 0.7, 1.5)),
            "seed": st.integers(0, 2**53 - 1),
            "barred": st.sampled_from(((), (), (2,), (11, 12, 47))),
        }
    )


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    params=st.lists(plain_params(), min_size=1, max_size=4), rows=st.integers(1, 3), size=st.sampled_from((2, 3, 4)),
    dtype=st.sampled_from((torch.float64, torch.float32, torch.bfloat16)), seed=st.integers(0, 99), ties=st.booleans(),
)  # fmt: skip
def test_parts_choose_what_the_whole_chooses(
    params: list[dict[str, Any]], rows: int, size: int, dtype: torch.dtype, seed: int, ties: bool
) -> None:
    logits = torch.randn((len(params), rows, VOCABULARY), generator=torch.Generator().manual_seed(seed)) * 3
    if ties:
        logits = logits.round()
    logits = logits.to(dtype)
    seqs = sequences([dict(own) for own in params])
    positions = torch.arange(rows).repeat(len(seqs), 1) + 17
    divided = Parts(logits, size)
    given_ = sampler().choose(divided, seqs, positions)
    wanted = sampler().choose(logits.clone(), seqs, positions)
    assert divided.brought_together == 0
    assert torch.equal(given_.token_ids, wanted.token_ids)
    assert torch.equal(given_.finite, wanted.finite)
    accepted = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(given_.log_probabilities(), wanted.log_probabilities(), atol=accepted, rtol=accepted)
    torch.testing.assert_close(given_.logits.to(wanted.logits.dtype), wanted.logits, atol=0, rtol=0)


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1.0, "top_p": 0.9}, {"temperature": 1.0, "top_k": 5}, {"temperature": 1.0, "min_p": 0.1},
        {"repetition_penalty": 1.2}, {"logit_bias": {7: 2.0}}, {"min_tokens": 3}, {"allowed_token_ids": (7, 9)},
    ],
)  # fmt: skip
def test_what_looks_at_all_tokens_gets_all_of_them(params: dict[str, Any]) -> None:
    """A filter over a part of the vocabulary would keep another set of tokens."""
    assert not is_plain(SamplingParams(**({"temperature": 0.0} | params)))
    logits = torch.randn((1, 2, VOCABULARY), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    seqs, positions = sequences([dict(params)]), torch.tensor([[5, 6]])
    divided = Parts(logits, 4)
    given_ = sampler().choose(divided, seqs, positions, draft_tokens=[[9]])
    wanted = sampler().choose(logits.clone(), seqs, positions, draft_tokens=[[9]])
    assert divided.brought_together > 0
    assert torch.equal(given_.token_ids, wanted.token_ids)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_an_infinite_logit_in_any_part_is_seen(bad: float) -> None:
    """It would become text."""
    for token in (0, 13, VOCABULARY - 1):
        logits = torch.randn((2, 2, VOCABULARY), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        logits[1, 0, token] = bad
        chosen = sampler().choose(Parts(logits, 4), sequences([{}, {}]), torch.zeros((2, 2), dtype=torch.int64))
        assert chosen.finite.tolist() == [True, False]


def test_the_noise_of_a_token_is_the_same_in_a_part() -> None:
    """Sampling at a temperature would depend on the number of ranks."""
    seeds, positions = torch.tensor([3, 2**52 + 1]), torch.tensor([[1, 2, 3], [9, 8, 7]])
    noise, bits = gumbel_noise(seeds, positions, 96), noise_bits(seeds, positions, 96)
    for first in (0, 24, 72):
        assert torch.equal(gumbel_noise(seeds, positions, 24, first), noise[..., first : first + 24])
        assert torch.equal(noise_bits(seeds, positions, 24, first), bits[..., first : first + 24])
