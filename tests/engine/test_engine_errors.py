"""A request's error ends that request alone: its neighbours' answers, the cache and the pool do not notice."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch

from engine.batch import BatchPlan, Span
from engine.engine import Engine
from engine.events import StepStats
from engine.request import Request
from tests.conftest import MakeEngine
from tests.engine.driving import Answer, ask, assert_idle, drive, step
from tests.engine.strategies import prompt_of

MODES = ("ar", "diffusion", "speculative", "auto", "infill")
POISON = 3
"""A token no other prompt has, whose embedding is NaN here: so are K and V of every token that sees it."""


def ask_in(mode: str, request_id: str, prompt: list[int], **fields: Any) -> Request:
    if mode == "infill":
        fields = {"suffix_token_ids": [50, 51]} | fields
    return ask(request_id, prompt, mode, logit_bias={POISON: -100.0}, **fields)


def neighbours() -> list[Request]:
    return [ask_in(mode, f"good-{mode}", prompt_of(i, 0, 7 + 8 * i)) for i, mode in enumerate(MODES)]


def run(engine: Engine, requests: list[Request]) -> tuple[dict[str, Answer], list[StepStats]]:
    answers: dict[str, Answer] = {}
    for request in requests:
        engine.add(request)
    steps = []
    while engine.has_work:
        steps.append(step(engine, answers))
    assert_idle(engine)
    return answers, steps


def assert_unaffected(make: MakeEngine, answers: dict[str, Answer]) -> None:
    for request in neighbours():
        alone = drive(make(), [request])[request.request_id]
        assert alone.finished.reason == "length"
        assert answers[request.request_id].outcome == alone.outcome, request


def of_bad(plan: BatchPlan) -> list[Span]:
    return [span for span in plan.spans if span.seq.request.request_id == "bad"]


def poison(engine: Engine) -> None:
    """Gives the engine a copy of its model that knows a bad token."""
    decoder = copy.copy(engine.runner.decoder)
    decoder.embedding = decoder.embedding.clone()
    decoder.embedding[POISON] = float("nan")
    engine.runner.device_pass.decoder = decoder


def assert_clean(engine: Engine) -> None:
    """Pages are cleared before the next pass, whoever owns them by then."""
    drive(engine, [ask_in("ar", "after", prompt_of(8, 0, 5), max_tokens=1)])
    assert bool(torch.isfinite(engine.runner.pool.k).all()), "non-finite keys were left in the pool"
    assert bool(torch.isfinite(engine.runner.pool.v).all()), "non-finite values were left in the pool"


# --- exceptions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("healthy_passes", [0, 3])
def test_an_exception_in_the_forward(
    tiny_engine: MakeEngine, mode: str, healthy_passes: int, caplog: pytest.LogCaptureFixture
) -> None:
    """One request that a kernel chokes on would take everybody's answers with it."""
    engine = tiny_engine(max_batch_tokens=512)
    forward, seen = engine.runner.forward, 0

    def failing(plan: BatchPlan) -> Any:
        nonlocal seen
        seen += bool(of_bad(plan))
        if of_bad(plan) and seen > healthy_passes:
            raise RuntimeError("secret detail")
        return forward(plan)

    engine.runner.forward = failing  # type: ignore[method-assign]
    caplog.set_level(logging.CRITICAL, "lightcone.engine")
    bad = ask_in(mode, "bad", prompt_of(9, 0, 12))
    answers, _ = run(engine, [*neighbours(), bad])
    finished = answers["bad"].finished
    assert finished.reason == "error"
    assert finished.error is not None
    assert "secret" not in finished.error
    assert answers["bad"].tokens == drive(tiny_engine(), [bad])["bad"].tokens[: len(answers["bad"].tokens)]
    assert_unaffected(tiny_engine, answers)


@pytest.mark.parametrize("method", ["decide", "conclude"])
def test_an_exception_in_a_policy(
    tiny_engine: MakeEngine, method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One request whose parameters trip up the sampler would end all requests of its step group."""
    engine = tiny_engine()
    policy = engine.policies["diffusion"]
    original: Callable[..., Any] = getattr(policy, method)

    def failing(first: Any, *rest: Any) -> Any:
        spans = first.spans if method == "decide" else [first]
        if any(span.seq.request.request_id == "bad" for span in spans):
            raise ValueError("no such token")
        return original(first, *rest)

    monkeypatch.setattr(policy, method, failing)
    caplog.set_level(logging.CRITICAL, "lightcone.engine")
    answers, _ = run(engine, [*neighbours(), ask_in("diffusion", "bad", prompt_of(9, 0, 12))])
    assert answers["bad"].finished.reason == "error"
    assert_unaffected(tiny_engine, answers)


# --- numbers that are none --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("length", [12, 40])
def test_nan_in_a_prompt(tiny_engine: MakeEngine, mode: str, length: int) -> None:
    """One prompt that overflows would spread NaN to its neighbours, through the pool or through the prefix cache."""
    engine = tiny_engine(max_batch_tokens=87, kv_cache_tokens=512, max_block_length=32)
    poison(engine)
    bad = ask_in(mode, "bad", [POISON, *prompt_of(9, 0, length)])
    answers, steps = run(engine, [*neighbours(), bad])
    assert answers["bad"].outcome[:2] == ([], "error")
    assert answers["bad"].finished.error
    assert sum(stats.nan_logits for stats in steps) == 1
    assert_unaffected(tiny_engine, answers)
    assert_clean(engine)
    again = run(engine, [bad])[0]["bad"].finished
    assert (again.reason, again.stats.cached_tokens) == ("error", 0), "the prefix cache offers NaN"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("mode", MODES)
def test_non_finite_logits_in_the_middle_of_an_answer(tiny_engine: MakeEngine, mode: str, value: float) -> None:
    """A client would get garbage for the rest of its answer instead of an error."""
    engine = tiny_engine()
    forward, seen = engine.runner.forward, 0

    @torch.inference_mode()
    def failing(plan: BatchPlan) -> Any:
        nonlocal seen
        logits = forward(plan)
        seen += bool(of_bad(plan))
        for group, rows in zip(plan.groups, logits, strict=True):
            for i, span in enumerate(group.spans):
                if rows is not None and seen > 3 and span.seq.request.request_id == "bad":
                    rows[i, -1, 7] = value
        return logits

    engine.runner.forward = failing  # type: ignore[method-assign]
    bad = ask_in(mode, "bad", prompt_of(9, 0, 20))
    answers, steps = run(engine, [*neighbours(), bad])
    assert answers["bad"].finished.reason == "error"
    assert sum(stats.nan_logits for stats in steps) == 1
    whole = drive(tiny_engine(), [bad])["bad"].tokens
    assert answers["bad"].tokens == whole[: len(answers["bad"].tokens)], "what was streamed is not what is right"
    assert_unaffected(tiny_engine, answers)


@pytest.mark.parametrize("leave", ["abort", "preempt"])
def test_nan_of_a_request_that_leaves_before_any_logit_was_asked_for(tiny_engine: MakeEngine, leave: str) -> None:
    """A chunk of a prompt asks for no logits, so nobody sees its NaN: the next owner of its pages would read it."""
    engine = tiny_engine(kv_cache_tokens=64, max_batch_tokens=22, max_infill_window=16, max_block_length=8)
    poison(engine)
    engine.add(ask_in("ar", "bad", [POISON, *prompt_of(9, 0, 40)]))
    answers: dict[str, Answer] = {}
    assert step(engine, answers).phases == {"prefill": 1}
    if leave == "preempt":
        engine.scheduler._preempt(next(engine.scheduler.running))
    engine.abort("bad")
    follower = ask_in("ar", "next", prompt_of(3, 0, 9))
    alone = drive(tiny_engine(), [follower])["next"]
    assert drive(engine, [follower])["next"].outcome == alone.outcome


def test_errors_lose_no_pages_however_many_there_are(tiny_engine: MakeEngine) -> None:
    """A model with a bad spot would stop serving after a while."""
    engine = tiny_engine(kv_cache_tokens=128, max_running=4)
    poison(engine)
    requests = [ask_in(MODES[i % 5], f"r{i}", [*prompt_of(i, 0, 10), POISON, 20]) for i in range(40)]
    answers, steps = run(engine, requests)
    assert {answer.finished.reason for answer in answers.values()} == {"error"}
    assert sum(stats.nan_logits for stats in steps) == 40
    assert_clean(engine)
