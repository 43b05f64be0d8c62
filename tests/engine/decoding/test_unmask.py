"""Unmasking rules, on numbers alone. If one fails, other positions settle than the published rule says, or earlier."""

from __future__ import annotations

import math
import random
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batch import KVLimits, Phase, Span
from engine.decoding.policies.diffusion import denoise_outcome
from engine.decoding.results import HostChoices
from engine.decoding.unmask import (
    UnmaskRules,
    UnmaskState,
    count_settled,
    limit_of,
    quota,
    select_unmask,
    with_certain,
)
from engine.request import DecodingParams, Request, Unmasking
from engine.sequence import Block, Sequence
from tests.reference.denoising.unmasking import by_rule


def test_the_most_confident_positions_are_unmasked_and_of_equals_the_leftmost() -> None:
    """Against a naive loop: thresholds, quotas, positions that take no part, ties."""
    rng = random.Random(0)
    for _ in range(200):
        length = rng.randint(1, 9)
        confidences = [rng.choice((0.1, 0.5, 0.9, 1.0, rng.random())) for _ in range(length)]
        candidates = [rng.random() < 0.7 for _ in range(length)]
        threshold, quota = rng.choice((0.5, 0.9, 1.0, math.inf)), rng.randint(0, 4)
        taken = sorted((j for j in range(length) if candidates[j]), key=lambda j: -confidences[j])[:quota]
        wanted = [candidates[j] and (confidences[j] >= threshold or j in taken) for j in range(length)]
        state = UnmaskState(torch.tensor([candidates]), torch.tensor([threshold]), torch.tensor([quota]))
        given = select_unmask(torch.tensor([confidences]), state)
        assert given.unmask[0].tolist() == wanted
        assert given.remask is None


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_every_rule_is_its_formula(data: st.DataObject) -> None:
    """Other positions would settle than the published rule says. Blocks of all rules in one step, against a loop."""
    length = data.draw(st.integers(1, 9))
    values = st.floats(0.01, 1.0) | st.sampled_from((0.5, 0.9, 1.0))
    rules, confidences, candidates, quotas = [], [], [], []
    for _ in range(data.draw(st.integers(1, 4))):
        name = data.draw(st.sampled_from(get_args(Unmasking)))
        threshold = data.draw(st.sampled_from((0.3, 0.9, None) if name != "cumulative" else (0.3, 0.9)))
        factor, bound = data.draw(st.sampled_from((0.3, 1.0, 2.0, 7.0))), data.draw(st.sampled_from((0.2, 0.45)))
        rules.append(DecodingParams(mode="diffusion", unmasking=name, threshold=threshold, factor=factor, bound=bound))
        confidences.append(data.draw(st.lists(values, min_size=length, max_size=length)))
        candidates.append(data.draw(st.lists(st.booleans(), min_size=length, max_size=length)))
        quotas.append(data.draw(st.integers(0, 2)))
    seqs = [Sequence(Request(request_id="r", prompt_token_ids=[6], max_tokens=9, decoding=own), frozenset(), 0)
            for own in rules]  # fmt: skip
    state = UnmaskState(
        torch.tensor(candidates),
        torch.tensor([limit_of(own) for own in rules], dtype=torch.float64),
        torch.tensor(quotas),
        rules=UnmaskRules.of(seqs, torch.device("cpu"), torch.float64),
    )
    given_rows = select_unmask(torch.tensor(confidences, dtype=torch.float64), state).unmask.tolist()
    for own, row, may, quota_, given_row in zip(rules, confidences, candidates, quotas, given_rows, strict=True):
        taken, closest = by_rule(own, {j: math.log(row[j]) for j in range(length) if may[j]})
        first = sorted((j for j in range(length) if may[j]), key=lambda j: -row[j])[:quota_]
        if closest > 1e-9:
            assert given_row == [j in taken or j in first for j in range(length)], own


def test_one_position_is_unmasked_for_certain_and_counts_towards_the_quota() -> None:
    """Under a grammar an answer would not come to its end, or a step unmask more than its schedule says."""
    state = UnmaskState(torch.tensor([[True] * 4] * 2), torch.tensor([math.inf] * 2), torch.tensor([2, 2]))
    confidences = torch.tensor([[0.9, 0.1, 0.8, 0.7]] * 2)
    given = select_unmask(confidences, with_certain(state, torch.tensor([1, -1])))
    assert given.unmask.tolist() == [[True, True, False, False], [True, False, True, False]]


def refining(length: int, max_denoising_steps: int | None = None) -> tuple[Sequence, Block]:
    """A sequence that has just opened a block behind its anchor, token 7."""
    decoding = DecodingParams(mode="diffusion", block_length=length, max_denoising_steps=max_denoising_steps)
    request = Request(request_id="r", prompt_token_ids=[6], max_tokens=50, decoding=decoding)
    seq = Sequence(request, frozenset(), 0, token_ids=[6, 7])
    seq.block = Block.fresh(1, length, 0, anchor=7)
    return seq, seq.block


@pytest.mark.parametrize("steps", [None, 1, 2, 3, 5, 8])
def test_an_even_schedule_ends_within_its_steps(steps: int | None) -> None:
    """A user who asks for three steps would pay for more."""
    seq, block = refining(8, steps)
    while block.num_masked:
        for _ in range(quota(seq, block)):
            block.masked[block.masked.index(True)] = False
        block.steps += 1
    assert block.steps == min(steps or 8, 7)


def test_the_anchor_that_is_awaited_counts_for_no_step() -> None:
    seq, _ = refining(8, 7)
    assert quota(seq, Block.fresh(9, 8, 1, awaits_anchor=True)) == 1


@pytest.mark.parametrize(
    ("masked", "final", "revocable"),
    [
        ([False, False, True, False], 2, 0),
        ([True, False], 0, 0),
        ([False, False, False], 3, 3),
        ([], 0, 0),
    ],
)
def test_what_has_settled(masked: list[bool], final: int, revocable: int) -> None:
    """Text would be withdrawn that had been streamed as final, or be held back for no reason."""
    assert count_settled(masked, revocable=False) == final
    assert count_settled(masked, revocable=True) == revocable


def step(seq: Sequence, block: Block, unmask: list[int], remask: list[int] | None = None) -> list[int]:
    """One denoising step in which position j chooses token 20 + j. Returns the tokens that settled."""
    size = len(block)
    span = Span(seq, Phase.DENOISE, block.start, [0] * size, KVLimits.up_to(block.end), num_logits=size)
    choices = HostChoices(
        token_ids=[[20 + j for j in range(size)]], finite=[True], confidences=[[0.5] * size],
        unmask=[[j in unmask for j in range(size)]],
        remask=[] if remask is None else [[j in remask for j in range(size)]],
    )  # fmt: skip
    return denoise_outcome(span, choices, 0).token_ids


def test_tokens_settle_from_the_left_under_a_rule_that_never_masks_again() -> None:
    seq, block = refining(5)
    assert step(seq, block, [2]) == []
    assert step(seq, block, [1]) == [21, 22]
    assert step(seq, block, [3, 4]) == [23, 24]


def test_nothing_settles_before_the_block_is_whole_under_a_rule_that_may_mask_again() -> None:
    """What such a rule takes back must not have been shown as final."""
    seq, block = refining(5)
    assert step(seq, block, [1, 2], remask=[]) == []
    assert step(seq, block, [3, 4], remask=[2]) == []
    assert (block.masked, block.confidences[2]) == ([False, False, True, False, False], None)
    assert step(seq, block, [2], remask=[]) == [21, 22, 23, 24]
