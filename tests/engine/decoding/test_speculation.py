"""Self-speculation: AR's own answer, sooner. If one fails, a user who asked for speed got another text for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import engine.sampling.filters
from engine.engine import Engine
from engine.request import Request
from engine.sampling.noise import gumbel_noise
from tests.engine.decoding.conftest import Pair
from tests.engine.decoding.harness import (
    QUESTIONS,
    SAMPLINGS,
    agrees,
    answer_to,
    answers_together,
    assert_matches,
    random_prompt,
    request_for,
)
from tests.engine.driving import Answer
from tests.reference.loops import Task, autoregressive, speculative
from tests.reference.sampling import Sampling

BLOCK_LENGTHS = (2, 3, 4, 8, 16, 32)


@pytest.fixture(scope="module")
def ahead(pairs: dict[str, Pair]) -> dict[str, Engine]:
    """Engines that draft ahead in a verifying pass in any company; those of `pairs` never do."""
    return {name: pair.make(shared_verify_below=1000, kv_cache_tokens=512) for name, pair in pairs.items()}


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("name", ["flat", "calm"])
def test_drafts_and_accepts_what_the_reference_does(pairs: dict[str, Pair], name: str, sampling: Sampling) -> None:
    """The answer, and every draft behind it: counts of drafts, acceptances and passes are the reference's."""
    for length, block_length in ((1, 4), (19, 8)):
        task = Task(prompt=random_prompt(length, length), max_tokens=16, sampling=sampling, block_length=block_length)
        answer, run = answer_to(pairs[name].engine, task, "speculative"), speculative(pairs[name].reference, task)
        assert agrees(answer, run)
        stats = answer.finished.stats
        counts = (stats.draft_tokens, stats.accepted_draft_tokens, stats.passes)
        assert counts == (run.drafted, run.accepted, run.passes)


@pytest.mark.parametrize("sampling", ["greedy", "greedy_penalised", "hot", "everything"])
@pytest.mark.parametrize("name", ["clear", "calm"])
def test_every_block_length_gives_the_text_of_plain_decoding(
    pairs: dict[str, Pair], ahead: dict[str, Engine], name: str, sampling: str
) -> None:
    """Alone, exactly, with and without drafting ahead."""
    task = Task(prompt=random_prompt(13), max_tokens=24, sampling=SAMPLINGS[sampling])
    plain = answer_to(pairs[name].engine, task, "ar").outcome
    for each in (pairs[name].engine, ahead[name]):
        for block_length in BLOCK_LENGTHS:
            answer = answer_to(each, replace(task, block_length=block_length), "speculative")
            assert answer.outcome == plain, f"block length {block_length}"


def requests_of_every_width(temperature: float) -> list[Request]:
    """Two tasks, each by AR and by speculation and auto of every block length."""
    requests = []
    for i, (length, sampling) in enumerate(((5, SAMPLINGS["everything"]), (21, Sampling(seed=9)))):
        task = Task(
            prompt=random_prompt(length, length), max_tokens=20, sampling=replace(sampling, temperature=temperature)
        )
        requests.append(request_for(task, "ar", f"{i} ar"))
        for block_length in BLOCK_LENGTHS:
            wide = replace(task, block_length=block_length)
            requests.append(request_for(wide, "speculative", f"{i} speculative {block_length}"))
            requests.append(request_for(wide, "auto", f"{i} auto {block_length}"))
    return requests


def unlike_plain_decoding(answers: dict[str, Answer]) -> list[str]:
    """Requests whose answer is not what AR answered in the same batch."""
    return [name for name, answer in answers.items() if answer.outcome != answers[f"{name[0]} ar"].outcome]


@pytest.mark.parametrize("temperature", [0.0, 0.8, 1.3])
@pytest.mark.parametrize("name", ["clear", "calm"])
def test_modes_and_block_lengths_agree_in_one_batch(pairs: dict[str, Pair], name: str, temperature: float) -> None:
    """All at once, joining one after the other: AR, speculation and auto of every width, whatever touches logits."""
    for shared_verify_below in (0, 1000):
        loaded = pairs[name].make(shared_verify_below=shared_verify_below, max_running=32)
        answers = answers_together(loaded, requests_of_every_width(temperature))
        assert unlike_plain_decoding(answers) == []


def test_modes_disagree_when_noise_is_keyed_by_batch_row(
    pairs: dict[str, Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the comparison above sees what the usual kind of noise does."""

    def noise_by_row(seeds: torch.Tensor, positions: torch.Tensor, vocab_size: int) -> torch.Tensor:
        return gumbel_noise(torch.arange(len(seeds)), positions, vocab_size)

    monkeypatch.setattr(engine.sampling.filters, "gumbel_noise", noise_by_row)
    loaded = pairs["clear"].make(max_running=32)
    assert unlike_plain_decoding(answers_together(loaded, requests_of_every_width(0.0))) == [], "greedy knows no noise"
    requests = requests_of_every_width(1.0)
    assert len(unlike_plain_decoding(answers_together(loaded, requests))) > len(requests) / 2


def test_whole_blocks_are_accepted_and_the_draft_ahead_is_used(
    pairs: dict[str, Pair], ahead: dict[str, Engine]
) -> None:
    """Where drafts are good, drafting ahead saves passes; without this case the equality tests would prove little."""
    task = Task(prompt=random_prompt(13), max_tokens=60, sampling=Sampling(temperature=2.0, seed=1), block_length=4)
    alone = answer_to(pairs["calm"].engine, task, "speculative")
    shared = answer_to(ahead["calm"], task, "speculative")
    assert alone.outcome == shared.outcome
    assert alone.finished.stats.accepted_draft_tokens > 0.8 * alone.finished.stats.draft_tokens
    assert shared.finished.stats.passes < 0.8 * alone.finished.stats.passes


def test_the_built_in_model_writes_what_the_reference_writes(builtin: Pair) -> None:
    tasks = [Task(prompt=prompt, max_tokens=24, block_length=16) for prompt in QUESTIONS]
    tasks += [Task(prompt=prompt, max_tokens=24, sampling=SAMPLINGS["everything"]) for prompt in QUESTIONS[:3]]
    assert_matches(builtin.engine, builtin.reference, tasks, "speculative", speculative)
    assert_matches(builtin.engine, builtin.reference, tasks[:6], "speculative", autoregressive)


def test_the_built_in_model_takes_fewer_passes_than_tokens(builtin: Pair) -> None:
    """What speculation is for."""
    answer = answer_to(builtin.engine, Task(prompt=QUESTIONS[3], max_tokens=64, block_length=16), "speculative")
    assert answer.finished.stats.passes < 0.6 * answer.finished.stats.completion_tokens
