"""Block diffusion against the reference loops. If one fails, the published quality and speed of the mode are not ours:
other positions are unmasked, or in another order, or with another context."""

from __future__ import annotations

from typing import Any

import pytest

from engine.batch import Phase
from engine.engine import Engine
from tests.engine.decoding.conftest import Pair
from tests.engine.decoding.harness import QUESTIONS, SAMPLINGS, agrees, answer_to, assert_matches, random_prompt
from tests.reference.checkpoints import EOS
from tests.reference.loops import Task, diffusion, diffusion_shared_commit
from tests.reference.sampling import Sampling

PROMPT = random_prompt(13)
GREEDY, SAMPLED = Sampling(), Sampling(temperature=1.0, seed=8)
# Of one block's schedule: a threshold alone, a threshold that nothing or everything meets, with a cap on steps, and an
# even schedule of fewer steps than the block has tokens and of as many, which are more than the last block has.
SCHEDULES: dict[str, dict[str, float | int | str | None]] = {
    "threshold": {"threshold": 0.3},
    "high_threshold": {"threshold": 1.0},
    "low_threshold": {"threshold": 1e-6},
    "capped": {"threshold": 0.4, "max_denoising_steps": 3},
    "one_step": {"threshold": None, "max_denoising_steps": 1},
    "even_3": {"threshold": None, "max_denoising_steps": 3},
    "even_5": {"threshold": None, "max_denoising_steps": 5},
    "even_7": {"threshold": None, "max_denoising_steps": 7},
    "even_8": {"threshold": None, "max_denoising_steps": 8},
    "even": {"threshold": None},
    "factor": {"unmasking": "factor", "threshold": None, "factor": 1.0},
    "floored_factor": {"unmasking": "factor", "threshold": 0.2, "factor": 1.5},
    "bound": {"unmasking": "bound", "threshold": 0.9, "factor": 1.5, "bound": 0.15},
    "cumulative": {"unmasking": "cumulative", "threshold": 0.1},
}


@pytest.fixture(scope="module")
def shared_engines(pairs: dict[str, Pair]) -> dict[str, Engine]:
    """Engines whose commit passes carry the next block's first step."""
    return {name: pair.make(shared_commit=True, kv_cache_tokens=512) for name, pair in pairs.items()}


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_writes_what_the_reference_writes(pair: Pair, sampling: Sampling) -> None:
    tasks = [
        Task(prompt=random_prompt(length, length), max_tokens=21, sampling=sampling, threshold=0.25)
        for length in (1, 30)
    ]
    assert_matches(pair.engine, pair.reference, tasks, "diffusion", diffusion)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_unmasks_on_the_schedule_that_was_asked_for(
    pairs: dict[str, Pair], shared_engines: dict[str, Engine], schedule: dict[str, float | int | str | None]
) -> None:
    """Tokens and passes: a user who asks for three steps pays for three."""
    for name, sampling in (("clear", GREEDY), ("calm", SAMPLED)):
        pair = pairs[name]
        task = Task(prompt=PROMPT, max_tokens=21, sampling=sampling, ignore_eos=True, **schedule)  # type: ignore[arg-type]
        for engine, loop in ((pair.engine, diffusion), (shared_engines[name], diffusion_shared_commit)):
            answer, run = answer_to(engine, task, "diffusion"), loop(pair.reference, task)
            assert agrees(answer, run)
            assert (answer.finished.stats.passes, answer.finished.stats.denoising_steps) == (
                run.passes,
                run.denoising_steps,
            )


@pytest.mark.parametrize("block_length", [2, 3, 5, 16, 32, 64])
def test_every_block_length_equals_the_reference(
    pairs: dict[str, Pair], shared_engines: dict[str, Engine], block_length: int
) -> None:
    """Also where the block is wider than the answer, or the answer no multiple of the block."""
    pair, shared = pairs["clear"], shared_engines["clear"]
    tasks = [
        Task(prompt=PROMPT, max_tokens=23, sampling=sampling, block_length=block_length, threshold=0.5)
        for sampling in (GREEDY, SAMPLED)
    ]
    assert_matches(pair.engine, pair.reference, tasks, "diffusion", diffusion)
    assert_matches(shared, pair.reference, tasks, "diffusion", diffusion_shared_commit)


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_the_shared_commit_is_the_schedule_it_says_it_is(
    pair: Pair, shared_engines: dict[str, Engine], sampling: Sampling
) -> None:
    """Position 0 is a mask in the shared step, takes no part in it, and is then replaced by the causal token."""
    engine = shared_engines[pair.name]
    tasks = [
        Task(prompt=random_prompt(length, length), max_tokens=21, sampling=sampling, threshold=0.25)
        for length in (1, 30)
    ]
    assert_matches(engine, pair.reference, tasks, "diffusion", diffusion_shared_commit)


def test_the_shared_commit_saves_a_pass_a_block(pairs: dict[str, Pair], shared_engines: dict[str, Engine]) -> None:
    task = Task(prompt=PROMPT, max_tokens=40, block_length=8, threshold=1e-6, ignore_eos=True)
    alone = answer_to(pairs["clear"].engine, task, "diffusion").finished.stats
    shared = answer_to(shared_engines["clear"], task, "diffusion").finished.stats
    assert alone.passes == 2 * 5 - 1  # five blocks of one step each, a commit after all but the last
    assert shared.passes == 5


@pytest.mark.parametrize("shared", [False, True], ids=["separate", "shared"])
def test_an_answer_ends_when_no_mask_is_left_of_its_end_token(
    pairs: dict[str, Pair], shared_engines: dict[str, Engine], shared: bool
) -> None:
    """No pass is spent on what stands behind the end, and no token from there is shown."""
    pair = pairs["flat"]
    engine = shared_engines["flat"] if shared else pair.engine
    loop = diffusion_shared_commit if shared else diffusion
    early = 0
    for seed in range(12):
        sampling = Sampling(temperature=1.0, seed=seed, logit_bias={EOS: 3.5})
        task = Task(prompt=PROMPT, max_tokens=30, sampling=sampling, block_length=10, threshold=0.35)
        answer, run = answer_to(engine, task, "diffusion"), loop(pair.reference, task)
        assert agrees(answer, run)
        assert (answer.finished.stats.passes, answer.finished.stats.denoising_steps) == (
            run.passes,
            run.denoising_steps,
        )
        assert EOS not in answer.tokens
        early += run.reason == "stop"
    assert early > 6, "hardly an answer ended early: the test shows nothing"


def test_penalties_see_what_was_unmasked_before_this_step(pairs: dict[str, Pair]) -> None:
    """A strong penalty forbids repeats only across steps: two positions of one step may take the same token."""
    sampling = Sampling(presence_penalty=100.0)
    pair = pairs["clear"]
    slow = Task(prompt=PROMPT, max_tokens=20, sampling=sampling, threshold=1.0, ignore_eos=True)
    answer = answer_to(pair.engine, slow, "diffusion").tokens
    assert len(set(answer)) == len(answer)
    fast = Task(prompt=PROMPT, max_tokens=20, sampling=sampling, threshold=0.02, ignore_eos=True)
    assert_matches(pair.engine, pair.reference, [fast], "diffusion", diffusion)


def test_the_built_in_model_writes_what_the_reference_writes(builtin: Pair) -> None:
    tasks = [Task(prompt=prompt, max_tokens=24, block_length=16) for prompt in QUESTIONS]
    tasks += [Task(prompt=prompt, max_tokens=24, sampling=SAMPLINGS["everything"]) for prompt in QUESTIONS[:3]]
    assert_matches(builtin.engine, builtin.reference, tasks, "diffusion", diffusion)


def test_the_built_in_model_with_shared_commits_writes_what_the_reference_writes(builtin: Pair) -> None:
    engine = builtin.make(kv_cache_tokens=512, shared_commit=True)
    tasks = [Task(prompt=prompt, max_tokens=24, block_length=8) for prompt in QUESTIONS]
    assert_matches(engine, builtin.reference, tasks, "diffusion", diffusion_shared_commit)


@pytest.mark.parametrize("max_tokens", [1, 8, 21])
def test_blocks_may_start_with_a_mask_instead_of_an_anchor(pairs: dict[str, Pair], max_tokens: int) -> None:
    """Models without a causal head have no token to start with: prefill asks for no logit, a commit gives no token."""
    engine = pairs["clear"].make(kv_cache_tokens=512)
    policy = engine.policies["diffusion"]
    policy.block_start = "mask"
    starts: set[int] = set()
    forward = engine.runner.forward

    def watching(plan: Any) -> Any:
        starts.update(span.start for span in plan.spans if span.phase is Phase.DENOISE)
        assert all(span.num_logits == 0 for span in plan.spans if span.phase in (Phase.PREFILL, Phase.COMMIT))
        return forward(plan)

    engine.runner.forward = watching  # type: ignore[method-assign]
    task = Task(prompt=PROMPT, max_tokens=max_tokens, block_length=8, ignore_eos=True)
    answer = answer_to(engine, task, "diffusion")
    assert (len(answer.tokens), answer.finished.reason) == (max_tokens, "length")
    assert starts == set(range(len(PROMPT), len(PROMPT) + max_tokens, 8))
    assert not set(answer.tokens) & pairs["clear"].reference.banned_ids
