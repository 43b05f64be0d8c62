"""Auto chooses widths as it likes. If one fails, its choice shows in the text: the same request, seed and model answer
differently when the server is busy."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from engine.decoding.acceptance import AcceptanceEstimate
from engine.decoding.costs import CostTable
from engine.decoding.width import WidthController
from engine.engine import Engine
from engine.sequence import Block, Sequence
from tests.engine.decoding.conftest import Pair
from tests.engine.decoding.harness import (
    QUESTIONS,
    SAMPLINGS,
    answer_to,
    answers_together,
    assert_matches,
    random_prompt,
    request_for,
    spy_on_widths,
)
from tests.reference.loops import Task, autoregressive
from tests.reference.sampling import Sampling


class Whimsical(WidthController):
    """Decides everything by dice: whatever a controller may come to decide, the text must not show it."""

    def __init__(self, seed: int) -> None:
        super().__init__(CostTable.assumed(64), AcceptanceEstimate(64))
        self.dice = random.Random(seed)

    def draft_width(self, seq: Sequence, num_running: int, limit: int) -> int:
        return self.dice.randint(1, limit)

    def verify_length(self, seq: Sequence, block: Block, num_running: int) -> int:
        return self.dice.randint(1, len(block))

    def draft_ahead(self, seq: Sequence, block: Block, next_width: int, num_running: int) -> bool:
        return self.dice.random() < 0.7


def set_controller(engine: Engine, controller: WidthController, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("speculative", "auto"):
        monkeypatch.setattr(engine.policies[name], "controller", controller)


@pytest.fixture(scope="module", params=[0, 1000], ids=["separate", "shared"])
def engines(request: pytest.FixtureRequest, pairs: dict[str, Pair]) -> dict[str, Engine]:
    return {
        name: pairs[name].make(shared_verify_below=request.param, kv_cache_tokens=512) for name in ("clear", "calm")
    }


@pytest.mark.parametrize(
    ("name", "sampling"), [*(("calm", name) for name in SAMPLINGS), ("clear", "greedy"), ("clear", "everything")]
)
def test_no_choice_of_widths_shows_in_the_text(
    engines: dict[str, Engine], name: str, sampling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engines[name]
    task = Task(prompt=random_prompt(13), max_tokens=28, sampling=SAMPLINGS[sampling], block_length=20)
    plain = answer_to(engine, task, "ar").outcome
    widths = spy_on_widths(engine, monkeypatch)
    for seed in range(2):
        set_controller(engine, Whimsical(seed), monkeypatch)
        assert answer_to(engine, task, "auto").outcome == plain
    assert len(widths) >= 4, "the widths hardly changed: the test shows nothing"


def test_no_choice_of_widths_shows_in_company(engines: dict[str, Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engines["calm"]
    tasks = {
        name: Task(prompt=random_prompt(9, i), max_tokens=30, sampling=sampling)
        for i, (name, sampling) in enumerate(SAMPLINGS.items())
    }
    plain = {name: answer_to(engine, task, "ar").outcome for name, task in tasks.items()}
    set_controller(engine, Whimsical(7), monkeypatch)
    together = answers_together(engine, [request_for(task, "auto", name) for name, task in tasks.items()], stagger=2)
    assert {name: answer.outcome for name, answer in together.items()} == plain


def test_an_odd_cost_table_moves_the_width_but_not_the_text(
    engines: dict[str, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real controller, with costs for which the best width depends on how the last drafts fared."""
    widths = (1, 2, 3, 5, 7, 11, 23)
    # What a round of each width brings if each draft survives with probability 0.5, so that all widths are about even.
    brings = [(1 - 0.5**width) / 0.5 for width in widths]
    table = CostTable(widths, (1,), ((1.1,), *((0.5 * tokens,) for tokens in brings[1:])))
    engine = engines["calm"]
    controller = WidthController(table, AcceptanceEstimate(64, decay=0.8))
    set_controller(engine, controller, monkeypatch)
    seen = spy_on_widths(engine, monkeypatch)
    for seed in range(5):
        sampling = Sampling(temperature=0.35 + 0.2 * seed, seed=seed)
        task = Task(prompt=random_prompt(13), max_tokens=60, sampling=sampling, block_length=32)
        plain = answer_to(engine, task, "ar").outcome
        assert answer_to(engine, task, "auto").outcome == plain
    assert len(seen) >= 4, f"only widths {sorted(seen)} occurred: the test shows nothing"


def test_the_width_never_exceeds_what_the_request_allows(
    engines: dict[str, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engines["calm"]
    free = CostTable((1, 2, 4, 8, 16, 32), (1,), ((1.0,), (1e-6,), (1e-6,), (1e-6,), (1e-6,), (1e-6,)))
    set_controller(engine, WidthController(free, AcceptanceEstimate(64)), monkeypatch)
    widths = spy_on_widths(engine, monkeypatch)
    task = Task(prompt=random_prompt(13), max_tokens=33, sampling=SAMPLINGS["hot"], block_length=11)
    plain = answer_to(engine, task, "ar").outcome
    widths.clear()
    assert answer_to(engine, task, "auto").outcome == plain
    assert max(widths) <= 11


def test_the_built_in_model_writes_what_the_reference_writes(builtin: Pair) -> None:
    tasks = [Task(prompt=prompt, max_tokens=24, block_length=32) for prompt in QUESTIONS[:8]]
    tasks += [Task(prompt=prompt, max_tokens=24, sampling=SAMPLINGS["everything"]) for prompt in QUESTIONS[:3]]
    assert_matches(builtin.engine, builtin.reference, tasks, "auto", autoregressive)


def test_calibration_changes_no_text(pairs: dict[str, Pair]) -> None:
    """A server that measured its costs answers like one that did not, and starts with a clean pool."""
    pair = pairs["calm"]
    measured = pair.make(calibration_seconds=0.05, kv_cache_tokens=512)
    for sampling in SAMPLINGS.values():
        task = Task(prompt=random_prompt(13), max_tokens=24, sampling=sampling, block_length=16)
        assert answer_to(measured, task, "auto").outcome == answer_to(pair.engine, task, "ar").outcome
        longer = replace(task, prompt=random_prompt(40))
        assert answer_to(measured, longer, "diffusion").outcome == answer_to(pair.engine, longer, "diffusion").outcome
