"""Log-probabilities in every mode. If one fails, users who rank or filter by them do so on other numbers."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from engine.request import Mode
from tests.engine.decoding.conftest import Pair
from tests.engine.decoding.harness import SAMPLINGS, agrees, answer_to, logprobs_of, random_prompt, request_for
from tests.engine.driving import Answer, drive
from tests.reference.loops import Run, Task, autoregressive, diffusion
from tests.reference.sampling import Sampling

ROUNDING = 1e-4


def assert_logprobs(answer: Answer, run: Run, alternatives: int) -> None:
    """One entry a shown token: its own log-probability and the best alternatives, most likely first."""
    assert agrees(answer, run)
    assert [entry.token_id for entry in logprobs_of(answer)] == answer.tokens
    for entry, row in zip(logprobs_of(answer), run.logprobs, strict=False):
        assert entry.logprob == pytest.approx(row[entry.token_id], abs=ROUNDING)
        assert [token for token, _ in entry.top] == (-row).argsort(kind="stable")[:alternatives].tolist()
        assert [value for _, value in entry.top] == pytest.approx(
            sorted(row, reverse=True)[:alternatives], abs=ROUNDING
        )


@pytest.mark.parametrize("sampling", ["greedy", "everything"])
def test_those_of_speculation_are_those_of_plain_decoding(pair: Pair, sampling: str) -> None:
    """Of the distribution after bans, bias and penalties, before temperature and filters; whatever drafted."""
    base = replace(SAMPLINGS[sampling], logprobs=4)
    task = Task(prompt=random_prompt(13), max_tokens=20, sampling=base, block_length=4)
    run = autoregressive(pair.reference, task)
    plain = answer_to(pair.engine, task, "ar")
    for answer in (plain, answer_to(pair.engine, task, "speculative"), answer_to(pair.engine, task, "auto")):
        assert_logprobs(answer, run, 4)
        values = [entry.logprob for entry in logprobs_of(answer)]
        assert values == pytest.approx([entry.logprob for entry in logprobs_of(plain)], abs=1e-9)


def test_those_of_diffusion_are_from_the_step_that_chose_the_token(pair: Pair) -> None:
    """Later steps see more of the block and would say otherwise."""
    sampling = Sampling(temperature=1.0, seed=5, logprobs=3, repetition_penalty=1.2)
    task = Task(prompt=random_prompt(13), max_tokens=20, sampling=sampling, threshold=0.2)
    assert_logprobs(answer_to(pair.engine, task, "diffusion"), diffusion(pair.reference, task), 3)


def test_none_are_given_unasked_and_zero_alternatives_are_none(pairs: dict[str, Pair]) -> None:
    engine = pairs["clear"].engine
    task = Task(prompt=random_prompt(13), max_tokens=8)
    assert logprobs_of(answer_to(engine, task, "speculative")) == []
    bare = logprobs_of(answer_to(engine, replace(task, sampling=Sampling(logprobs=0)), "speculative"))
    assert len(bare) == 8
    assert all(entry.top == [] for entry in bare)


LISTED = (70, 7, 23)


@pytest.mark.parametrize("mode", ["ar", "speculative", "auto", "diffusion"])
def test_listed_tokens_are_told_in_place_of_the_likeliest(pair: Pair, mode: Mode) -> None:
    """Whoever compares given answers would otherwise have to find them among the likeliest of a whole vocabulary."""
    base = Sampling(temperature=1.0, seed=5, logprobs=3, repetition_penalty=1.2)
    task = Task(prompt=random_prompt(13), max_tokens=12, sampling=base, threshold=0.2, block_length=4)
    run = (diffusion if mode == "diffusion" else autoregressive)(pair.reference, task)
    other = request_for(task, mode, "other")  # lists nothing, in the same passes
    request = request_for(task, mode)
    listing = msgspec.structs.replace(request.sampling, logprobs=0, logprob_token_ids=LISTED)
    answers = drive(pair.engine, [msgspec.structs.replace(request, sampling=listing), other])
    assert agrees(answers["r"], run)
    for entry, row in zip(logprobs_of(answers["r"]), run.logprobs, strict=False):
        assert [token for token, _ in entry.top] == sorted(LISTED, key=lambda token: -row[token])
        assert [value for _, value in entry.top] == pytest.approx([row[t] for t, _ in entry.top], abs=ROUNDING)
    assert all(len(entry.top) == 3 for entry in logprobs_of(answers["other"]))


@pytest.mark.parametrize("mode", ["ar", "speculative", "diffusion"])
def test_ends_are_passed_where_that_is_asked_for(pair: Pair, mode: Mode) -> None:
    """Their probability is as good as any other's: who asks for it must hear it, even where an end is chosen."""
    end = min(pair.reference.end_ids)
    task = Task(prompt=random_prompt(9), max_tokens=6, sampling=Sampling(logit_bias={end: 100.0}, logprobs=0))
    assert answer_to(pair.engine, task, mode).tokens == []
    passing = answer_to(pair.engine, task, mode, passes_ends=True)
    assert passing.tokens == [end] * 6
    assert passing.finished.reason == "length"
    assert [entry.token_id for entry in logprobs_of(passing)] == [end] * 6
    stopping = answer_to(pair.engine, task, mode, passes_ends=True, stop_token_ids=(end,))
    assert stopping.finished.stop_token_id == end
