"""Gaps whose length is found. If one fails, an editor is given a text that is not the likeliest, or none at all."""

from __future__ import annotations

import random
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batch import Phase
from engine.engine import Engine
from engine.errors import RequestError
from engine.events import PromptScored
from engine.request import Request
from engine.scheduling import gap_search
from engine.scheduling.gap_search import best_length, next_lengths, scoring_request
from tests.conftest import MakeEngine
from tests.engine.driving import Visit, ask, assert_idle, collect, drive
from tests.engine.strategies import prompt_of

PROMPT, SUFFIX = prompt_of(0, 16, 4), prompt_of(9, 0, 5)
TIGHT = {"kv_cache_tokens": 72, "page_size": 4, "max_model_len": 56, "max_block_length": 8, "max_batch_tokens": 64}


def gap(name: str = "r", most: int = 9, **fields: Any) -> Request:
    values: dict[str, Any] = {"suffix_token_ids": SUFFIX, "threshold": 0.3, "temperature": 0.8, "seed": 3}
    return ask(name, PROMPT, "infill", max_tokens=most, finds_gap=True, **(values | fields))


def exactly(request: Request, length: int) -> Request:
    """The request for a gap of this length."""
    return msgspec.structs.replace(request, finds_gap=False, max_tokens=length)


def search(scores: dict[int, float], least: int, most: int) -> tuple[int, list[int]]:
    """The length found where these are the scores of all lengths, and those tried, in order."""
    known: dict[int, float] = {}
    while lengths := next_lengths(known, least, most):
        assert not set(lengths) & set(known), "no length is tried twice"
        known |= {length: scores[length] for length in lengths}
    return best_length(known), list(known)


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(st.integers(1, 300), st.integers(1, 20), st.data())
def test_the_best_of_scores_with_one_peak_is_found(most: int, least: int, data: st.DataObject) -> None:
    """Texts of which none is certain."""
    least = min(least, most)
    peak = data.draw(st.integers(least, most))
    found, tried = search({n: -1.0 - abs(n - peak) for n in range(least, most + 1)}, least, most)
    assert found == peak
    assert all(least <= length <= most for length in tried)
    assert len(tried) <= 45


def test_what_nothing_can_beat_ends_the_search() -> None:
    """A text of more than half the probability: the gap of ten tokens that an editor asks 150 for."""
    scores = dict.fromkeys(range(1, 151), -20.0)
    assert search(scores | {1: -0.1}, 1, 150) == (1, [1])
    assert search(scores | {5: -0.1}, 1, 150) == (5, [*range(1, 9)])
    assert search(scores | {10: -0.1}, 1, 150) == (10, [*range(1, 17)])
    assert len(search(scores | {10: -0.8}, 1, 150)[1]) == 16 + 7, "all rounds, since something may be likelier"


def test_of_equals_the_shortest_wins() -> None:
    assert best_length({4: -1.0, 3: -1.0, 9: -2.0}) == 3


def test_short_gaps_are_all_tried() -> None:
    """Where text is short, there is no telling a length from its neighbours."""
    dice = random.Random(0)
    for most in range(1, 17):
        scores = {n: -1.0 - dice.random() for n in range(1, most + 1)}
        assert search(scores, 1, most) == (best_length(scores), [*range(1, most + 1)])


def likelihood(engine: Engine, tokens: list[int]) -> float:
    """Of gap and suffix after the prompt, from the scores of the whole text."""
    whole = ask("s", [*PROMPT, *tokens, *SUFFIX], "ar", max_tokens=0, prompt_logprobs=0)
    events = drive(engine, [whole])["s"].events
    scores = [entry.logprob for event in events if isinstance(event, PromptScored) for entry in event.logprobs]
    return sum(scores[len(PROMPT) - 1 :])


@pytest.mark.parametrize("fields", [{}, {"temperature": 0.0}, {"repetition_penalty": 1.3, "max_denoising_steps": 3}])
def test_the_answer_is_that_of_the_likeliest_length(tiny_engine: MakeEngine, fields: dict[str, Any]) -> None:
    """Held against a request for each length, and the score of each text."""
    for seed in range(3):
        request = gap(seed=seed, most=6, **fields)
        found = drive(tiny_engine(), [request])["r"]
        texts = {}
        for length in range(1, 7):
            steps = request.decoding.max_denoising_steps
            own = msgspec.structs.replace(request.decoding, max_denoising_steps=steps and min(steps, length))
            one = msgspec.structs.replace(exactly(request, length), decoding=own)
            texts[length] = drive(tiny_engine(), [one])["r"].tokens
        scores = {length: likelihood(tiny_engine(), tokens) for length, tokens in texts.items()}
        tried = search(scores, 1, 6)[1]
        best = best_length({length: scores[length] for length in tried})
        assert found.tokens == texts[best]
        assert found.finished.reason == ("length" if best == 6 else "stop")
        assert found.finished.stats.completion_tokens == best
        assert found.finished.stats.prompt_tokens == len(PROMPT)


@pytest.mark.parametrize("fields", [{}, {"threshold": None}, {"max_denoising_steps": 5}])
def test_a_gap_that_was_filled_in_a_hurry_is_filled_once_more(
    tiny_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    """A long text would be worse for having been one of many."""
    monkeypatch.setattr(gap_search, "TRIAL_STEPS", 2)
    again = 0
    for seed in range(3):
        request = gap(seed=seed, most=9, min_tokens=6, **({"threshold": 0.9} | fields))
        engine = tiny_engine()
        started = Mock(side_effect=engine.scheduler.add)
        monkeypatch.setattr(engine.scheduler, "add", started)
        found = drive(engine, [request])["r"]
        length = len(found.tokens)
        names = {call.args[0].request.request_id for call in started.call_args_list}
        assert found.tokens == drive(tiny_engine(), [exactly(request, length)])["r"].tokens
        again += f"r/{length}/final" in names
    assert again > 0


def test_company_and_preemption_change_no_answer(tiny_engine: MakeEngine) -> None:
    requests = [gap(f"r{i}", seed=i, most=7, logprobs=1) for i in range(3)]
    requests.append(ask("other", prompt_of(1, 0, 9), "auto", max_tokens=30))
    alone = {each.request_id: drive(tiny_engine(), [each])[each.request_id] for each in requests}
    for pool in ({}, TIGHT | {"max_infill_window": 24}):
        answers = drive(tiny_engine(**pool), map(Visit, requests))
        for name, answer in answers.items():
            assert answer.outcome == alone[name].outcome
        assert sum(answer.finished.stats.preemptions for answer in answers.values()) > 0 or not pool


def test_trials_share_the_prompt(tiny_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long file before the cursor would otherwise be read once for each length, and again for each score."""
    engine = tiny_engine(kv_cache_tokens=1024, max_batch_tokens=512)
    forward, starts = engine.runner.forward, list[int]()

    def spying(plan: Any) -> Any:
        starts.extend(span.start for span in plan.spans if span.phase is Phase.PREFILL)
        return forward(plan)

    monkeypatch.setattr(engine.runner, "forward", spying)
    drive(engine, [gap(most=8)])
    assert starts.count(0) == 1
    assert starts.count(16) >= 10, "the first page comes from the cache"


def test_an_abort_ends_all_trials(tiny_engine: MakeEngine) -> None:
    for steps in (0, 1, 4, 9):
        engine = tiny_engine()
        engine.add(gap())
        for _ in range(steps):
            engine.step()
        answers: dict[str, Any] = {}
        collect(engine.abort("r"), answers)
        assert answers["r"].finished.reason == "abort"
        assert not engine.has_work
        assert_idle(engine)
        engine.add(gap(most=2))  # the name is free again


def test_an_error_of_one_trial_ends_the_request(tiny_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny_engine()
    forward = engine.runner.forward

    def failing(plan: Any) -> Any:
        if any(span.seq.request.request_id == "r/3" for span in plan.spans):
            raise RuntimeError("a broken pass")
        return forward(plan)

    monkeypatch.setattr(engine.runner, "forward", failing)
    answers = drive(engine, [gap(), ask("other", prompt_of(1, 0, 9), "ar")])
    assert answers["r"].finished.reason == "error"
    assert answers["r"].tokens == []
    assert answers["other"].finished.reason == "length"


def test_min_tokens_is_the_least_length(tiny_engine: MakeEngine) -> None:
    assert len(drive(tiny_engine(), [gap(most=9, min_tokens=8)])["r"].tokens) in (8, 9)
    assert len(drive(tiny_engine(), [gap(most=1)])["r"].tokens) == 1


def test_a_name_in_use_is_refused_and_so_is_a_gap_without_a_suffix(tiny_engine: MakeEngine) -> None:
    engine = tiny_engine()
    engine.add(gap())
    with pytest.raises(RequestError, match="in use"):
        engine.add(gap())
    with pytest.raises(RequestError, match="before a 'suffix' alone") as refusal:
        engine.add(ask("x", PROMPT, "ar", finds_gap=True))
    assert refusal.value.param == "find_gap_length"


def test_a_text_is_scored_from_the_gap_on(tiny_engine: MakeEngine) -> None:
    """And gets the scores that the whole text gets, whatever of it was cached."""
    engine = tiny_engine(kv_cache_tokens=512)
    whole = drive(engine, [ask("a", [*PROMPT, 7, 8, *SUFFIX], "ar", max_tokens=0, prompt_logprobs=0)])["a"]
    for _ in range(2):
        part = drive(engine, [scoring_request(gap("b"), [7, 8])])
        [answer] = part.values()
        ours, theirs = ([e for e in each.events if isinstance(e, PromptScored)] for each in (answer, whole))
        found = [entry for event in ours for entry in event.logprobs]
        expected = [entry for event in theirs for entry in event.logprobs][len(PROMPT) - 1 :]
        assert [entry.token_id for entry in found] == [7, 8, *SUFFIX]
        assert [e.logprob for e in found] == pytest.approx([e.logprob for e in expected], abs=1e-9)
    assert answer.finished.stats.cached_tokens > 0, "the prompt was found in the cache"
