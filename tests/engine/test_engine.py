"""Engine.step() from outside: what a request is told, what it is counted, and where its limits are."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from engine.batch import BatchPlan, Phase
from engine.engine import Engine
from engine.errors import RequestError
from engine.events import DraftUpdated, Finished, StepStats, TokensSettled
from engine.request import Request
from tests.conftest import MakeEngine
from tests.engine.driving import Answer, ask, assert_idle, collect, drive, step
from tests.engine.strategies import NARROW, prompt_of

MODES = ("ar", "diffusion", "speculative", "auto", "infill")
PROMPT = prompt_of(0, 0, 20)


def ask_in(mode: str, request_id: str = "r", prompt: list[int] = PROMPT, **fields: Any) -> Request:
    """A request of any mode; one of infill has a suffix."""
    suffix = {"suffix_token_ids": [50, 51, 52]} if mode == "infill" else {}
    return ask(request_id, prompt, mode, **(suffix | fields))


def watch(engine: Engine, requests: list[Request]) -> tuple[dict[str, Answer], list[StepStats], list[BatchPlan]]:
    """Runs requests together, keeping every step's figures and plan."""
    plans: list[BatchPlan] = []
    forward = engine.runner.forward

    def recording(plan: BatchPlan) -> Any:
        plans.append(plan)
        return forward(plan)

    engine.runner.forward = recording  # type: ignore[method-assign]
    answers: dict[str, Answer] = {}
    for request in requests:
        engine.add(request)
    steps = []
    while engine.has_work:
        steps.append(step(engine, answers))
    assert_idle(engine)
    return answers, steps, plans


# --- what a request is told -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shared", [False, True])
def test_totals_agree_with_the_passes_there_were(tiny_engine: MakeEngine, mode: str, shared: bool) -> None:
    """usage and the metrics would report work that was not done, or hide work that was."""
    engine = tiny_engine(shared_commit=shared, shared_verify_below=8 if shared else 0)
    requests = [ask_in(mode, f"r{i}", prompt_of(i, 0, 5 + 9 * i), logit_bias=NARROW) for i in range(3)]
    answers, steps, plans = watch(engine, requests)
    passes: Counter[str] = Counter()
    for plan in plans:
        passes.update(
            span.seq.request.request_id for span in plan.spans if span.phase is not Phase.PREFILL and not span.second
        )
    totals = [answer.finished.stats for answer in answers.values()]
    for request in requests:
        stats, tokens = answers[request.request_id].finished.stats, answers[request.request_id].tokens
        assert stats.completion_tokens == len(tokens) == 16
        assert stats.prompt_tokens == len(request.prompt_token_ids)
        assert stats.passes == passes[request.request_id]
        assert stats.accepted_draft_tokens <= stats.draft_tokens
    assert sum(stats.draft_tokens for stats in totals) == sum(stats.draft_tokens for stats in steps)
    accepted = [count for stats in steps for count in stats.accepted_draft_lengths]
    assert sum(stats.accepted_draft_tokens for stats in totals) == sum(accepted)
    closed = [count for stats in steps for count in stats.denoising_steps_per_block]
    assert sum(stats.blocks for stats in totals) == len(closed)
    refining = Counter(span.phase for plan in plans for span in plan.spans)
    denoising = sum(stats.denoising_steps for stats in totals)
    second = sum(span.second for plan in plans for span in plan.spans)
    every = refining[Phase.DENOISE] + refining[Phase.DRAFT]
    assert every - second <= denoising <= every  # a second span counts for nothing if the first one ended the request
    assert [stats.tokens for stats in steps] == [plan.num_tokens for plan in plans]
    for figures in steps:
        assert sum(figures.phases.values()) == figures.sequences + figures.shared
        assert figures.duration >= figures.forward_duration > 0


@pytest.mark.parametrize("mode", MODES)
def test_running_totals_grow_with_what_is_committed(tiny_engine: MakeEngine, mode: str) -> None:
    """The usage in a stream's chunks would contradict the text sent so far."""
    answer = drive(tiny_engine(), [ask_in(mode, logit_bias=NARROW)])["r"]
    sent = 0
    for event in answer.events:
        if isinstance(event, TokensSettled):
            assert event.token_ids
            sent += len(event.token_ids)
            assert event.stats.completion_tokens == sent
    assert answer.finished.stats.completion_tokens == sent


@pytest.mark.parametrize("mode", ["ar", "diffusion", "speculative", "auto"])
def test_an_end_token_is_counted_but_never_part_of_the_text(tiny_engine: MakeEngine, mode: str) -> None:
    """`</s>` would show up in chats, or what was generated after the end."""
    requests = [
        ask_in(mode, f"r{seed}", logit_bias=NARROW, temperature=1.0, seed=seed, stop_token_ids=(20,), max_tokens=30)
        for seed in range(8)
    ]
    stopped = [answer for answer in drive(tiny_engine(), requests).values() if answer.finished.reason == "stop"]
    assert any(answer.tokens for answer in stopped)
    for answer in stopped:
        assert answer.finished.stop_token_id == 20
        assert 20 not in answer.tokens
        assert answer.finished.stats.completion_tokens == len(answer.tokens) + 1


# --- drafts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_drafts_come_only_when_asked_for(tiny_engine: MakeEngine, mode: str) -> None:
    """Text that may be withdrawn would reach clients that cannot take it back."""
    answers = drive(tiny_engine(), [ask_in(mode, "plain"), ask_in(mode, "drafts", include_drafts=True)])
    assert answers["plain"].drafts == []
    assert bool(answers["drafts"].drafts) == (mode not in ("ar",))
    assert answers["plain"].tokens == answers["drafts"].tokens


@pytest.mark.parametrize("mode", ["diffusion", "infill"])
@pytest.mark.parametrize("shared_commit", [False, True])
def test_an_unmasked_token_is_final(tiny_engine: MakeEngine, mode: str, shared_commit: bool) -> None:
    """`diffusing` clients would watch words change that they were told had settled."""
    request = ask_in(mode, include_drafts=True, max_tokens=30, temperature=1.0, seed=1)
    answer = drive(tiny_engine(shared_commit=shared_commit), [request])["r"]
    sent, shown, steps = 0, 0, []
    for event in answer.events:
        if isinstance(event, TokensSettled):
            sent += len(event.token_ids)
        if isinstance(event, DraftUpdated):
            steps.append((event.block, event.step))
            assert len(event.token_ids) == len(event.confidences) <= event.length
            for offset, (token, confidence) in enumerate(zip(event.token_ids, event.confidences, strict=True)):
                assert (token is None) == (confidence is None)
                assert confidence is None or 0 < confidence <= 1
                if token is not None:
                    shown += 1
                    assert answer.tokens[sent + offset] == token
    assert shown > 0
    assert steps == sorted(set(steps)), "a step was reported twice or out of order"


def test_a_speculative_draft_is_replaced_by_what_is_verified(tiny_engine: MakeEngine) -> None:
    """The last draft shown would stay on the screen as if it were text."""
    answer = drive(tiny_engine(), [ask_in("speculative", include_drafts=True, logit_bias=NARROW)])["r"]
    for draft, after in zip(answer.events, answer.events[1:], strict=False):
        if isinstance(draft, DraftUpdated):
            assert None not in draft.token_ids
            assert isinstance(after, TokensSettled | Finished)


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("max_tokens", [1, 2, 3])
def test_the_shortest_answers(tiny_engine: MakeEngine, mode: str, max_tokens: int) -> None:
    """`max_tokens = 1`, the usual way to ask for a classification, would hang or give two tokens."""
    answer = drive(tiny_engine(), [ask_in(mode, max_tokens=max_tokens)])["r"]
    assert (len(answer.tokens), answer.finished.reason) == (max_tokens, "length")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("prompt_length", [1, 31, 32, 47])
def test_a_request_may_fill_the_context_to_its_last_token(
    tiny_engine: MakeEngine, mode: str, shared: bool, prompt_length: int
) -> None:
    """The longest request the server promises to take would fail on its way, for want of one page."""
    engine = tiny_engine(
        max_model_len=48, kv_cache_tokens=48, shared_commit=shared, shared_verify_below=8 if shared else 0
    )
    suffix = [50] * (min(3, 47 - prompt_length)) if mode == "infill" else []
    room = 48 - prompt_length - len(suffix)
    fields = {"suffix_token_ids": suffix} if mode == "infill" else {}
    answer = drive(engine, [ask_in(mode, "r", prompt_of(1, 0, prompt_length), max_tokens=room, **fields)])["r"]
    assert (len(answer.tokens), answer.finished.reason) == (room, "length")


@pytest.mark.parametrize("mode", MODES)
def test_one_token_more_than_the_context_is_refused_at_once(tiny_engine: MakeEngine, mode: str) -> None:
    """It would be admitted, and wait for ever for pages that do not exist."""
    engine = tiny_engine(max_model_len=48, kv_cache_tokens=48)
    with pytest.raises(RequestError) as refused:
        engine.add(ask_in(mode, max_tokens=48 - len(PROMPT) + 1))
    assert refused.value.code == "context_length_exceeded"
    assert not engine.has_work


# --- coming and going -------------------------------------------------------------------------------------------------


def test_an_id_in_use_is_refused_and_the_first_request_unharmed(tiny_engine: MakeEngine) -> None:
    """A client's retry would end the answer it is retrying."""
    engine = tiny_engine()
    engine.add(ask_in("ar"))
    with pytest.raises(RequestError, match="in use"):
        engine.add(ask_in("diffusion"))
    answers: dict[str, Answer] = {}
    while engine.has_work:
        step(engine, answers)
    assert answers["r"].outcome == drive(tiny_engine(), [ask_in("ar")])["r"].outcome


@pytest.mark.parametrize("passes", [0, 1, 3])
def test_an_id_can_be_used_again_after_an_abort(tiny_engine: MakeEngine, passes: int) -> None:
    """The new request would be given the aborted one's answer."""
    engine = tiny_engine(max_running=1)
    engine.add(ask_in("ar", "other", max_tokens=4))
    engine.add(ask_in("ar", "r", prompt_of(5, 0, 30)))
    dropped: dict[str, Answer] = {}
    for _ in range(passes):
        step(engine, dropped)
    collect(engine.abort("r"), dropped)
    assert dropped["r"].finished.reason == "abort"
    again = ask_in("ar", "r", prompt_of(6, 0, 10))
    engine.add(again)
    answers: dict[str, Answer] = {}
    while engine.has_work:
        step(engine, answers)
    assert answers["r"].outcome == drive(tiny_engine(), [again])["r"].outcome
    assert_idle(engine)


def test_aborting_what_is_not_there_does_nothing(tiny_engine: MakeEngine) -> None:
    """An abort that crosses its Finished on the wire would break the engine, or end the request twice."""
    engine = tiny_engine()
    assert engine.abort("nobody") == []
    drive(engine, [ask_in("ar")])
    assert engine.abort("r") == []


def test_a_step_with_nothing_to_do(tiny_engine: MakeEngine) -> None:
    """The idle heartbeat would fail, and a healthy idle engine be restarted."""
    events, stats = tiny_engine().step()
    assert events == []
    assert (stats.running, stats.waiting, stats.tokens, stats.free_pages) == (0, 0, 0, stats.num_pages)
