"""Unmasking rules, on numbers alone. If one fails, other positions settle than the published rule says, or earlier."""

from __future__ import annotations

import math
import random

import pytest
import torch

from engine.batch import KVLimits, Phase, Span
from engine.decoding.policies.diffusion import denoise_outcome
from engine.decoding.results import HostChoices
from engine.decoding.unmask import UnmaskState, count_settled, quota, select_unmask
from engine.request import DecodingParams, Request
from engine.sequence import Block, Sequence


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
