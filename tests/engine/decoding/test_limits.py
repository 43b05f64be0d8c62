"""Ends and edges in every mode. If one fails, an answer is cut short, runs on, or a corner of the API is a trap."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.request import Decoding
from tests.engine.decoding.conftest import Pair
from tests.engine.decoding.harness import SAMPLINGS, Loop, answer_to, assert_matches, random_prompt
from tests.reference.checkpoints import EOS
from tests.reference.loops import Task, autoregressive, diffusion, speculative
from tests.reference.sampling import Sampling

MODES: dict[str, tuple[Decoding, Loop]] = {
    "ar": ("ar", autoregressive),
    "diffusion": ("diffusion", diffusion),
    "speculative": ("speculative", speculative),
    "auto": ("auto", autoregressive),
}
ENDING = Sampling(temperature=1.0, seed=2, logit_bias={EOS: 3.0})
PROMPT = random_prompt(15)


@pytest.fixture(params=list(MODES.values()), ids=list(MODES))
def mode(request: pytest.FixtureRequest) -> tuple[Decoding, Loop]:
    """One way to decode after the other, and its reference."""
    chosen: tuple[Decoding, Loop] = request.param
    return chosen


@pytest.mark.parametrize("name", ["clear", "calm"])
@pytest.mark.parametrize("max_tokens", [1, 2, 3, 8, 9])
def test_max_tokens_is_exact(pairs: dict[str, Pair], mode: tuple[Decoding, Loop], name: str, max_tokens: int) -> None:
    """Also below the block length: nothing beyond it is counted, kept or shown."""
    pair, (decoding, loop) = pairs[name], mode
    tasks = [
        Task(prompt=prompt, max_tokens=max_tokens, sampling=sampling, ignore_eos=True, threshold=0.3)
        for prompt in ([7], PROMPT)
        for sampling in (Sampling(), SAMPLINGS["hot"])
    ]
    for task in tasks:
        answer = answer_to(pair.engine, task, decoding)
        assert (len(answer.tokens), answer.finished.reason) == (max_tokens, "length")
        assert answer.finished.stats.completion_tokens == max_tokens
    assert_matches(pair.engine, pair.reference, tasks, decoding, loop)


def test_end_tokens_end_the_answer_and_are_not_shown(pairs: dict[str, Pair], mode: tuple[Decoding, Loop]) -> None:
    pair, (decoding, loop) = pairs["calm"], mode
    tasks = [Task(prompt=PROMPT, max_tokens=40, sampling=replace(ENDING, seed=seed)) for seed in range(4)]
    assert_matches(pair.engine, pair.reference, tasks, decoding, loop)
    ended = [answer_to(pair.engine, task, decoding) for task in tasks]
    assert any(answer.finished.reason == "stop" for answer in ended)
    for answer in ended:
        assert (answer.finished.stop_token_id == EOS) == (answer.finished.reason == "stop")
        assert answer.finished.stats.completion_tokens == len(answer.tokens) + (answer.finished.reason == "stop")


def test_ignore_eos_bars_the_end_token(pairs: dict[str, Pair], mode: tuple[Decoding, Loop]) -> None:
    """Benchmarks rely on it: the answer is as long as it was asked to be. Nothing in it reads as the answer's end."""
    pair, (decoding, loop) = pairs["calm"], mode
    task = Task(prompt=PROMPT, max_tokens=40, sampling=ENDING, ignore_eos=True, threshold=0.3)
    answer = answer_to(pair.engine, task, decoding)
    assert (len(answer.tokens), answer.finished.reason, EOS in answer.tokens) == (40, "length", False)
    assert_matches(pair.engine, pair.reference, [task], decoding, loop)


def test_stop_token_ids_end_the_answer_with_or_without_ignore_eos(
    pairs: dict[str, Pair], mode: tuple[Decoding, Loop]
) -> None:
    pair, (decoding, loop) = pairs["calm"], mode
    stops = tuple(range(20, 30))
    tasks = [
        Task(prompt=PROMPT, max_tokens=40, sampling=ENDING, stop_token_ids=stops, ignore_eos=ignore, threshold=0.3)
        for ignore in (False, True)
    ]
    assert_matches(pair.engine, pair.reference, tasks, decoding, loop)
    answer = answer_to(pair.engine, tasks[1], decoding)
    assert answer.finished.reason == "stop"
    assert answer.finished.stop_token_id in stops
    assert not set(stops) & set(answer.tokens)


@pytest.mark.parametrize("min_tokens", [1, 5, 30])
def test_min_tokens_holds_off_every_end(pairs: dict[str, Pair], mode: tuple[Decoding, Loop], min_tokens: int) -> None:
    """The bias makes an end almost certain at each token: it comes exactly when it may."""
    pair, (decoding, loop) = pairs["clear"], mode
    sampling = Sampling(temperature=1.0, seed=4, min_tokens=min_tokens, logit_bias={EOS: 60.0, 33: 60.0})
    task = Task(prompt=PROMPT, max_tokens=30, sampling=sampling, stop_token_ids=(33,), block_length=12)
    answer = answer_to(pair.engine, task, decoding)
    assert len(answer.tokens) == min_tokens
    assert answer.finished.reason == ("stop" if min_tokens < 30 else "length")
    assert_matches(pair.engine, pair.reference, [task], decoding, loop)


def test_a_prompt_of_one_token_and_blocks_longer_than_the_answer(
    pairs: dict[str, Pair], mode: tuple[Decoding, Loop]
) -> None:
    pair, (decoding, loop) = pairs["wide_heads"], mode
    tasks = [
        Task(prompt=[41], max_tokens=max_tokens, sampling=sampling, block_length=64, threshold=0.4, ignore_eos=True)
        for max_tokens in (7, 20)
        for sampling in (Sampling(), SAMPLINGS["everything"])
    ]
    assert_matches(pair.engine, pair.reference, tasks, decoding, loop)


def test_an_answer_may_fill_the_context_to_the_last_position(
    pairs: dict[str, Pair], mode: tuple[Decoding, Loop]
) -> None:
    """Prompt plus answer of exactly the model's length, with a block that would reach past it."""
    pair, (decoding, loop) = pairs["clear"], mode
    total = pair.engine.info.max_model_len
    task = Task(prompt=random_prompt(total - 11), max_tokens=11, block_length=64, ignore_eos=True)
    answer = answer_to(pair.engine, task, decoding)
    assert len(answer.tokens) == 11
    assert_matches(pair.engine, pair.reference, [task], decoding, loop)


def test_banned_ids_never_appear_however_likely(pairs: dict[str, Pair], mode: tuple[Decoding, Loop]) -> None:
    """A mask or padding token in the text would be nonsense, and in a block a hole."""
    pair, (decoding, loop) = pairs["clear"], mode
    banned = pair.engine.info.banned_token_ids
    assert set(banned) == pair.reference.banned_ids
    sampling = Sampling(temperature=1.3, seed=2, logit_bias=dict.fromkeys(banned, 100.0))
    task = Task(prompt=PROMPT, max_tokens=20, sampling=sampling, ignore_eos=True)
    assert not set(banned) & set(answer_to(pair.engine, task, decoding).tokens)
    assert_matches(pair.engine, pair.reference, [task], decoding, loop)
