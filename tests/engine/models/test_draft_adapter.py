"""The LoRA that some checkpoints draft with. If one fails, it drafts for nothing, or writes into the answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.request import Decoding
from tests.engine.decoding.conftest import Pair, make_pair
from tests.engine.decoding.harness import (
    SAMPLINGS,
    agrees,
    answer_to,
    answers_together,
    random_prompt,
    request_for,
)
from tests.reference.checkpoints import write_checkpoint
from tests.reference.loops import Task, speculative
from tests.reference.sampling import Sampling

EVERY_MODE: tuple[Decoding, ...] = ("ar", "auto", "speculative", "diffusion")


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A model with a draft adapter."""
    directory = tmp_path_factory.mktemp("adapted")
    write_checkpoint(directory, seed=4, logit_scale=0.5, lora_rank=4, lora_alpha=8)
    return make_pair("adapted", directory, "float64")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The same model without it."""
    directory = write_checkpoint(tmp_path_factory.mktemp("plain"), seed=4, logit_scale=0.5)
    return make_pair("plain", directory, "float64")


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_changes_drafts_but_no_answer(adapted: Pair, plain: Pair, sampling: Sampling) -> None:
    """The drafts are those of the reference with the adapter merged in; the answer is the plain model's."""
    task = Task(prompt=random_prompt(19), max_tokens=20, sampling=sampling)
    answer, run = answer_to(adapted.engine, task, "speculative"), speculative(adapted.reference, task)
    assert agrees(answer, run)
    stats = answer.finished.stats
    assert (stats.accepted_draft_tokens, stats.passes) == (run.accepted, run.passes)
    for decoding in EVERY_MODE:
        assert answer_to(adapted.engine, task, decoding).outcome == answer_to(plain.engine, task, decoding).outcome


def test_drafts_with_it_are_other_drafts(adapted: Pair, plain: Pair) -> None:
    task = Task(prompt=random_prompt(19), max_tokens=20)
    first = [answer_to(pair.engine, task, "speculative", include_drafts=True).drafts[0] for pair in (adapted, plain)]
    assert first[0].token_ids != first[1].token_ids


def test_reaches_drafting_rows_alone_in_a_mixed_pass(adapted: Pair, plain: Pair) -> None:
    """Drafts, verification, plain decoding and denoising side by side, and in one sequence's shared pass."""
    engine = adapted.make(shared_verify_below=1000, max_running=40)
    tasks = {
        f"{name} {decoding}": (Task(prompt=random_prompt(19), max_tokens=20, sampling=sampling), decoding)
        for name, sampling in SAMPLINGS.items()
        for decoding in EVERY_MODE
    }
    together = answers_together(engine, [request_for(task, mode, name) for name, (task, mode) in tasks.items()])
    for name, (task, mode) in tasks.items():
        alone: Decoding = "diffusion" if mode == "diffusion" else "ar"
        assert together[name].outcome == answer_to(plain.engine, replace(task), alone).outcome, name
