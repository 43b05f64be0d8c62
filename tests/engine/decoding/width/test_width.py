"""How wide to speculate. If one fails, answers stay right but a server drafts where it does not pay, or never."""

from __future__ import annotations

import random

import pytest

from engine.decoding.acceptance import AcceptanceEstimate
from engine.decoding.costs import CostTable
from engine.decoding.width import (
    EXPLORE_SHARE,
    PLAIN_RUN,
    Choice,
    OnePassWidthController,
    Round,
    WidthController,
)
from engine.request import Request, SamplingParams
from engine.sequence import DraftRecord, Sequence
from tests.engine.decoding.width.simulation import BATCHES, WIDTHS, Text, roofline, sequence

ROOFLINE = roofline(64.0)


def fresh() -> Sequence:
    """A sequence of which nothing is known."""
    return sequence(0, Text(()))


def test_a_long_context_makes_wide_blocks_pay() -> None:
    """Reading the cache costs a pass the same however many tokens it reads it for."""
    rows = tuple(tuple(width * batch * 1.0 for batch in BATCHES) for width in WIDTHS)
    controller = WidthController(CostTable(WIDTHS, BATCHES, rows, per_position=1.0), AcceptanceEstimate(32, prior=0.95))
    controller.explores = False
    short, long = fresh(), fresh()
    long.num_cached = 1000
    assert controller.draft_width(short, 16, 32) == 1
    assert controller.draft_width(long, 16, 32) == 32


def test_blocks_are_wide_when_the_device_is_idle_and_narrow_when_it_is_busy() -> None:
    controller = WidthController(ROOFLINE, AcceptanceEstimate(32, prior=0.9))
    controller.explores = False
    widths = [controller.draft_width(fresh(), running, 32) for running in (1, 4, 16, 64)]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == 32
    assert widths[-1] == 1


def test_bad_drafts_lead_to_plain_decoding_which_still_tries_now_and_then() -> None:
    """Else a server that once saw bad drafts would never speculate again."""
    controller = WidthController(ROOFLINE, AcceptanceEstimate(32))
    seq = fresh()
    passes, tried = 4000, 0
    for _ in range(passes):
        width = controller.draft_width(seq, 1, 32)
        controller.observe_pass(width, 1, 0, ROOFLINE.lookup(width, 1))
        if width > 1:
            tried += 1
            controller.observe_pass(width, 1, 0, ROOFLINE.lookup(width, 1))
            controller.observe_draft(seq, width - 1, 0)
    assert 4 < tried < EXPLORE_SHARE * passes + 40


def test_a_limit_below_the_narrowest_measured_width_is_plain_decoding() -> None:
    controller = WidthController(CostTable((1, 8), (1,), ((1.0,), (1.0,))), AcceptanceEstimate(32))
    controller.explores = False
    assert controller.draft_width(fresh(), 1, 4) == 1
    assert controller.draft_width(fresh(), 1, 8) == 8


def test_a_width_is_chosen_once_for_a_few_plain_tokens() -> None:
    """Choosing takes as long as a tenth of a small model's pass."""
    controller = WidthController(ROOFLINE, AcceptanceEstimate(32, prior=0.1))
    controller.explores = False
    seq = fresh()
    assert [controller.draft_width(seq, 1, 32) for _ in range(PLAIN_RUN)] == [1] * PLAIN_RUN
    for _ in range(20):
        controller.observe_draft(seq, 31, 31)
    assert controller.draft_width(seq, 1, 32) == 32


def test_requests_at_a_high_temperature_say_nothing_of_others() -> None:
    """After one user's requests at a high temperature everybody's predictable ones would be decoded token by token."""
    controller = WidthController(ROOFLINE, AcceptanceEstimate(32))
    controller.explores = False
    for number in range(50):
        request = Request(
            request_id=str(number), prompt_token_ids=[1], max_tokens=9, sampling=SamplingParams(temperature=1.5)
        )
        seq = Sequence(request, frozenset(), number)
        for _ in range(4):
            controller.observe_draft(seq, 31, 0)
        assert number < 5 or controller.draft_width(seq, 1, 32) == 1
    assert controller.draft_width(fresh(), 1, 32) == 32


@pytest.mark.parametrize("width", [2, 4, 8])
@pytest.mark.parametrize("rate", [0.2, 0.7, 0.98])
def test_tokens_of_passes_that_verify_and_draft_are_those_of_a_long_run(width: int, rate: float) -> None:
    """A pass after a rejection has nothing to verify. If it were not counted, bad drafts would look as if they paid."""
    controller = OnePassWidthController(ROOFLINE, AcceptanceEstimate(32, prior=rate))
    seq, rng = fresh(), random.Random(width)
    rounds = [Round(width, 1, 1.0)]
    choice = Choice(controller.prior_of(seq), DraftRecord(), 1, 0, rounds)
    tokens, passes, verifies = 0, 40_000, False
    for _ in range(passes):
        accepted = 0
        while verifies and accepted < width - 1 and rng.random() < rate:
            accepted += 1
        tokens += accepted + 1
        verifies = not verifies or accepted == width - 1
    assert controller._tokens(choice)[0] == pytest.approx(tokens / passes, rel=0.03)


def test_drafts_that_ride_along_are_narrower_where_the_device_is_busy() -> None:
    """Masks and drafts share a pass there: it is twice as wide."""
    controller = OnePassWidthController(ROOFLINE, AcceptanceEstimate(32, prior=0.9))
    controller.explores = False
    widths = [controller.draft_width(fresh(), running, 32) for running in (1, 4, 16, 64)]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > widths[-1] == 1
