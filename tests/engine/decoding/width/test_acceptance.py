"""How far drafts are accepted. If one fails, `auto` drafts for one user as it should for another."""

from __future__ import annotations

import pytest

from engine.decoding.acceptance import AcceptanceEstimate
from engine.sequence import DraftRecord


def test_an_estimate_converges_to_what_is_observed() -> None:
    estimate = AcceptanceEstimate(16)
    for _ in range(400):
        estimate.observe(15, 3)
    assert estimate.survival[:3] == pytest.approx([1.0] * 3, abs=1e-3)
    assert estimate.survival[3:] == pytest.approx([0.0] * 12, abs=1e-3)
    assert estimate.tokens_per_round(8) == pytest.approx(4.0, abs=0.01)


def test_a_wholly_accepted_draft_speaks_for_longer_ones() -> None:
    """Else whoever begins with narrow blocks never learns that wide ones would pay."""
    estimate = AcceptanceEstimate(16)
    for _ in range(400):
        estimate.observe(3, 3)
    assert estimate.survival[-1] > 0.95
    assert estimate.tokens_per_round(16) > 15


def test_what_is_known_of_longer_drafts_outweighs_it_and_fades() -> None:
    estimate = AcceptanceEstimate(16)
    for _ in range(200):
        estimate.observe(15, 5)
    estimate.observe(3, 3)
    assert estimate.tokens_per_round(16) == pytest.approx(6.0, abs=0.1)
    for _ in range(4000):
        estimate.observe(3, 3)
    assert estimate.tokens_per_round(16) > 12, "the texts of today may not be like those of yesterday"


def test_a_width_beyond_what_is_estimated_counts_as_the_widest() -> None:
    estimate = AcceptanceEstimate(8)
    assert estimate.tokens_per_round(1) == 1.0
    assert estimate.tokens_per_round(64) == estimate.tokens_per_round(8) < 8


def test_a_request_is_judged_by_its_own_drafts() -> None:
    """After hard requests of somebody else a predictable one would run at AR's speed, and the other way round."""
    estimate = AcceptanceEstimate(32)
    for _ in range(20):
        hard, easy = DraftRecord(), DraftRecord()
        for _ in range(4):
            estimate.observe_for(hard, 31, 0)
    assert estimate.survival[0] < 0.2
    estimate.observe_for(easy, 31, 31)
    assert estimate.survival_of(easy)[14] > 0.1 > estimate.survival_of(hard)[1]
    estimate.observe_for(easy, 31, 31)
    assert estimate.survival_of(easy)[14] > 0.5


def test_a_fresh_request_starts_from_those_before_it() -> None:
    estimate = AcceptanceEstimate(32)
    for _ in range(30):
        record = DraftRecord()
        for _ in range(3):
            estimate.observe_for(record, 31, 20)
    assert estimate.survival_of(DraftRecord()) == estimate.survival
    assert estimate.survival[18] > 0.9 > 0.3 > estimate.survival[20]


def test_one_long_answer_is_not_many_requests() -> None:
    """Else whoever asks for the longest text decides for all."""
    estimate = AcceptanceEstimate(32)
    for _ in range(40):
        estimate.observe_for(DraftRecord(), 31, 31)
    long = DraftRecord()
    for _ in range(40):
        estimate.observe_for(long, 31, 0)
    assert estimate.survival[0] > 0.5
    assert estimate.survival_of(long)[0] < 0.1
