"""Plain decoding against transformers. If one fails, users get another text than the model would write."""

from __future__ import annotations

import pytest

from tests.engine.decoding.conftest import Pair
from tests.engine.decoding.harness import QUESTIONS, SAMPLINGS, answer_to, assert_matches, random_prompt
from tests.reference.loops import Task, autoregressive
from tests.reference.sampling import Sampling


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_writes_what_the_reference_writes(pair: Pair, sampling: Sampling) -> None:
    """Lengths cross the rotary scaling's period (16) and a page (16) more than once."""
    tasks = [
        Task(prompt=random_prompt(length, seed=length), max_tokens=18, sampling=sampling) for length in (1, 16, 37)
    ]
    assert_matches(pair.engine, pair.reference, tasks, "ar", autoregressive)


def test_the_built_in_model_writes_what_the_reference_writes(builtin: Pair) -> None:
    tasks = [Task(prompt=prompt, max_tokens=24) for prompt in QUESTIONS]
    tasks += [Task(prompt=prompt, max_tokens=24, sampling=SAMPLINGS["everything"]) for prompt in QUESTIONS[:3]]
    assert_matches(builtin.engine, builtin.reference, tasks, "ar", autoregressive)


def test_greedy_is_the_same_for_every_seed(pairs: dict[str, Pair]) -> None:
    pair = pairs["clear"]
    prompt = random_prompt(9)
    answers = [
        answer_to(pair.engine, Task(prompt=prompt, max_tokens=12, sampling=Sampling(seed=seed)), "ar").outcome
        for seed in (0, 1, 99)
    ]
    assert answers[0] == answers[1] == answers[2]


def test_sampling_depends_on_every_bit_of_the_seed(pairs: dict[str, Pair]) -> None:
    """A client that asks for ten variants gets ten."""
    pair = pairs["calm"]
    prompt = random_prompt(9)
    seeds = (0, 1, 2, 2**31, 2**32, 2**33, 2**52, 2**53 - 1)
    answers = {
        tuple(answer_to(pair.engine, Task(prompt=prompt, sampling=Sampling(temperature=1.0, seed=seed)), "ar").tokens)
        for seed in seeds
    }
    assert len(answers) == len(seeds)


def test_a_temperature_too_small_to_divide_by_is_greedy(pairs: dict[str, Pair]) -> None:
    """1e-30 must not overflow the logits into nonsense."""
    pair = pairs["clear"]
    task = Task(prompt=random_prompt(9), max_tokens=12, sampling=Sampling(temperature=1e-30, seed=3))
    greedy = Task(prompt=random_prompt(9), max_tokens=12, sampling=Sampling())
    assert answer_to(pair.engine, task, "ar").outcome == answer_to(pair.engine, greedy, "ar").outcome
