"""Infill against the reference loop. If one fails, a gap is filled without sight of what follows it, or not exactly."""

from __future__ import annotations

import pytest

from tests.engine.decoding.conftest import Pair
from tests.engine.decoding.harness import QUESTIONS, SAMPLINGS, answer_to, assert_matches, random_prompt
from tests.reference.checkpoints import EOS
from tests.reference.loops import Task, infill
from tests.reference.sampling import Sampling

PROMPT, SUFFIX = random_prompt(11), random_prompt(7, seed=1)
SAMPLED = Sampling(temperature=1.0, seed=21)


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_writes_what_the_reference_writes(pair: Pair, sampling: Sampling) -> None:
    """Prompts of one token, of a page, and of more; gaps narrower and wider than a block."""
    tasks = [
        Task(prompt=random_prompt(length, length), max_tokens=gap, sampling=sampling, threshold=0.25, suffix=SUFFIX)
        for length, gap in ((1, 6), (16, 13))
    ]
    assert_matches(pair.engine, pair.reference, tasks, "infill", infill)


@pytest.mark.parametrize(("threshold", "steps"), [(0.9, None), (0.3, 4), (None, None), (None, 4), (None, 14)])
def test_unmasks_on_the_schedule_that_was_asked_for(
    pairs: dict[str, Pair], threshold: float | None, steps: int | None
) -> None:
    pair = pairs["flat"]
    for sampling in (Sampling(), SAMPLED):
        task = Task(
            prompt=PROMPT, max_tokens=14, sampling=sampling, threshold=threshold, max_denoising_steps=steps,
            suffix=SUFFIX,
        )  # fmt: skip
        assert_matches(pair.engine, pair.reference, [task], "infill", infill)
        assert answer_to(pair.engine, task, "infill").finished.stats.passes == infill(pair.reference, task).passes


@pytest.mark.parametrize("rule", ["factor", "bound", "cumulative"])
def test_every_unmasking_rule_fills_what_the_reference_does(pairs: dict[str, Pair], rule: str) -> None:
    """A field would be accepted before a suffix and change nothing there."""
    pair = pairs["flat"]
    task = Task(prompt=PROMPT, max_tokens=14, suffix=SUFFIX, unmasking=rule, threshold=0.3, factor=1.0, bound=0.1)
    assert_matches(pair.engine, pair.reference, [task], "infill", infill)
    assert answer_to(pair.engine, task, "infill").finished.stats.passes == infill(pair.reference, task).passes


def test_fills_the_gap_exactly_and_never_ends_it(pairs: dict[str, Pair]) -> None:
    """End and stop tokens are banned however likely: a gap of 20 tokens gets 20."""
    pair = pairs["clear"]
    sampling = Sampling(temperature=1.0, seed=3, logit_bias={EOS: 50.0, 33: 50.0})
    for ignore_eos in (False, True):
        task = Task(
            prompt=PROMPT, max_tokens=20, sampling=sampling, suffix=SUFFIX, stop_token_ids=(33,), ignore_eos=ignore_eos
        )
        answer = answer_to(pair.engine, task, "infill")
        assert (len(answer.tokens), answer.finished.reason, answer.finished.stop_token_id) == (20, "length", None)
        assert not {EOS, 33} & set(answer.tokens)
        assert_matches(pair.engine, pair.reference, [task], "infill", infill)


def test_the_gap_is_filled_with_the_suffix_in_sight(pairs: dict[str, Pair]) -> None:
    pair = pairs["clear"]
    answers = {
        tuple(answer_to(pair.engine, Task(prompt=PROMPT, max_tokens=12, suffix=suffix), "infill").tokens)
        for suffix in (SUFFIX, SUFFIX[::-1], [])
    }
    assert len(answers) == 3


def test_an_empty_suffix_and_a_gap_of_one_token(pairs: dict[str, Pair]) -> None:
    pair = pairs["clear"]
    tasks = [
        Task(prompt=PROMPT, max_tokens=12, suffix=[]),
        Task(prompt=PROMPT, max_tokens=1, suffix=SUFFIX),
        Task(prompt=[9], max_tokens=1, suffix=[]),
    ]
    assert_matches(pair.engine, pair.reference, tasks, "infill", infill)


def test_the_built_in_model_fills_in_what_the_reference_does(builtin: Pair) -> None:
    tasks = [Task(prompt=prompt[:-1], max_tokens=16, suffix=prompt[-4:]) for prompt in QUESTIONS]
    assert_matches(builtin.engine, builtin.reference, tasks, "infill", infill)
