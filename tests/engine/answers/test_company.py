"""Company never changes the answer: a request alone, and the same request among others, get the same tokens.

Exactly so in float64 on a tiny random model, whose drafts, settled tokens and end tokens depend on every bit of the
cache: a page mixed up, a mask off by one or a noise keyed by anything but the request shows at once.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from engine.request import Request
from engine.sampling import filters
from engine.sampling.noise import gumbel_noise
from tests.conftest import MakeEngine
from tests.engine.driving import Answer, Visit, ask, drive
from tests.engine.strategies import MODEL_LEN, NARROW, companies, pools, prompt_of

LIMITS = {"max_block_length": 16, "max_infill_window": 24, "max_model_len": MODEL_LEN}


class Solo:
    """Answers of requests that had an engine of their own, with room for everything, and that nobody predicted."""

    def __init__(
        self,
        make: MakeEngine,
        *,
        shared_commit: bool,
        limits: dict[str, Any] = LIMITS,
        company: MakeEngine | None = None,
    ) -> None:
        """company: makes the engines that requests share; None: as those that they have for themselves."""
        self.make, self.shared_commit, self.limits, self.company = make, shared_commit, limits, company or make
        self.known: dict[bytes, Answer] = {}

    def __call__(self, request: Request) -> Answer:
        alone = msgspec.structs.replace(
            request, request_id="alone", priority=0, cache_salt="", prediction_token_ids=None
        )
        key = msgspec.msgpack.encode(alone)
        if key not in self.known:
            fresh = self.make(**self.limits, shared_commit=self.shared_commit, shared_verify_below=0)
            self.known[key] = drive(fresh, [alone])["alone"]
        return self.known[key]

    def check(self, visits: list[Visit], **pool: Any) -> Counter[str]:
        """Runs the visits together and compares. Returns how often what could have changed an answer took place."""
        company = drive(self.company(**self.limits, **pool, shared_commit=self.shared_commit), visits)
        seen: Counter[str] = Counter()
        for visit in visits:
            answer, alone = company[visit.request.request_id], self(visit.request)
            stats = answer.finished.stats
            seen.update(
                {answer.finished.reason: 1, "preempted": stats.preemptions, "cached": stats.cached_tokens,
                 "accepted": stats.accepted_draft_tokens, "requests": 1}
            )  # fmt: skip
            if answer.finished.reason == "abort":
                assert answer.tokens == alone.tokens[: len(answer.tokens)], visit.request
            else:
                assert answer.outcome == alone.outcome, visit.request
        return seen


@pytest.fixture(scope="module")
def solo(tiny_engine: MakeEngine) -> Any:
    """By `shared_commit`, which is part of the question and not of the company."""

    @cache
    def by_schedule(shared_commit: bool) -> Solo:
        return Solo(tiny_engine, shared_commit=shared_commit)

    return by_schedule


@pytest.mark.parametrize("shared_commit", [False, True])
def test_company_never_changes_the_answer(solo: Any, shared_commit: bool) -> None:
    """Somebody's text would depend on who else is using the server. Every mode, option and shortage at once."""

    @settings(
        max_examples=40, derandomize=True, deadline=None, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example, HealthCheck.data_too_large],
    )  # fmt: skip
    @given(companies(), pools())
    def check(visits: list[Visit], pool: dict[str, Any]) -> None:
        solo(shared_commit).check(visits, **pool)

    check()


def crowd() -> list[Visit]:
    """Twelve requests of all modes with prompts that begin alike, in two waves; two leave early."""
    visits = []
    for i in range(12):
        mode = ("ar", "diffusion", "speculative", "auto", "speculative", "infill")[i % 6]
        fields: dict[str, Any] = {
            "max_tokens": 16 if mode == "infill" else 34,
            "block_length": (4, 8, 16)[i % 3],
            "temperature": (0.0, 0.8, 1.2)[i % 3],
            "seed": i,
            "logit_bias": NARROW if i % 2 else {},
            "repetition_penalty": 1.2 if i % 4 == 1 else 1.0,
            "suffix_token_ids": [50, 51, 52] if mode == "infill" else None,
            "include_drafts": i % 5 == 0,
        }
        request = ask(f"r{i}", prompt_of(0, 24, 3 + i), mode, **fields)
        visits.append(Visit(request, 10 * (i // 6), 9 if i in (3, 7) else None))
    return visits


@pytest.mark.parametrize("shared_commit", [False, True])
@pytest.mark.parametrize("shared_verify_below", [0, 100])
@pytest.mark.parametrize(("page_size", "budget"), [(1, 43), (8, 43), (16, 256)])
def test_a_crowd_in_a_small_pool(
    solo: Any, shared_commit: bool, shared_verify_below: int, page_size: int, budget: int
) -> None:
    """The same, where each way in which company could matter is known to have occurred."""
    seen = solo(shared_commit).check(
        crowd(), page_size=page_size, kv_cache_tokens=176, max_batch_tokens=budget, max_running=5,
        shared_verify_below=shared_verify_below,
    )  # fmt: skip
    assert (seen["requests"], seen["abort"], seen["error"]) == (12, 2, 0)
    assert seen["preempted"] > 0
    assert seen["cached"] > 0
    assert seen["accepted"] > 0


def test_the_check_bites(solo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With noise keyed by batch row instead of by request the comparison must fail: else it proves nothing."""

    def by_row(seeds: torch.Tensor, positions: torch.Tensor, vocab_size: int) -> torch.Tensor:
        return gumbel_noise(seeds + torch.arange(len(seeds)), positions, vocab_size)

    monkeypatch.setattr(filters, "gumbel_noise", by_row)
    with pytest.raises(AssertionError, match=r"Request\(request_id="):
        solo(False).check(crowd(), kv_cache_tokens=1024, max_batch_tokens=256, max_running=12)


def test_a_cache_salt_changes_what_is_reused_and_nothing_else(tiny_engine: MakeEngine) -> None:
    """A tenant's answers would depend on, or reveal, what other tenants asked."""
    make = tiny_engine(kv_cache_tokens=512)
    answers = [
        drive(make, [ask("r", prompt_of(0, 40, 1), "diffusion", cache_salt=salt)])["r"] for salt in ("", "", "x", "x")
    ]
    assert [answer.finished.stats.cached_tokens for answer in answers] == [0, 32, 0, 32]
    assert len({tuple(answer.tokens) for answer in answers}) == 1
