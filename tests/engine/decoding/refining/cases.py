"""Random cases of refinement, for the engine and for transformers' own generation."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

from engine.request import Request
from tests.conftest import MakeEngine
from tests.engine.decoding.harness import random_prompt
from tests.engine.driving import ask, drive
from tests.reference.refining.checkpoints import CANVAS
from tests.reference.refining.module import RefiningReference, RefiningTask

ENDS = tuple(range(10, 14))
"""Stop tokens with which an answer ends somewhere."""


def random_tasks(count: int, temperature: float) -> Iterator[RefiningTask]:
    """Prompts shorter and longer than the window; limits around canvases' boundaries; ends early, late and never."""
    rng = random.Random(f"{count}/{temperature}")
    edges = [n * CANVAS + d for n in (1, 2, 3) for d in (-1, 0, 1)]
    for i in range(count):
        yield RefiningTask(
            prompt=random_prompt(rng.choice((1, 2, 5, 6, 7, 8, 15, 16, 17, rng.randint(1, 40))), i),
            max_tokens=rng.choice((1, *edges, rng.randint(1, 25))),
            temperature=temperature,
            seed=rng.randrange(2**53),
            max_denoising_steps=rng.choice((None, None, 1, 2, 9)),
            stop_token_ids=rng.choice(((), ENDS)),
            ignore_eos=rng.random() < 0.5,
        )


def request_of(task: RefiningTask, request_id: str, **fields: Any) -> Request:
    """The engine's request of a task."""
    return ask(
        request_id, task.prompt, "diffusion", max_tokens=task.max_tokens, temperature=task.temperature, seed=task.seed,
        max_denoising_steps=task.max_denoising_steps, stop_token_ids=task.stop_token_ids, ignore_eos=task.ignore_eos,
        block_length=CANVAS, threshold=None, remasking="entropy_bound", **fields,
    )  # fmt: skip


def check(
    make: MakeEngine, reference: RefiningReference, tasks: list[RefiningTask], *, shared_commit: bool
) -> Counter[str]:
    """Holds answers and passes, run in one engine beside each other, against transformers'. Returns what took place."""
    engine = make(shared_commit=shared_commit, max_block_length=CANVAS, max_infill_window=0)
    answers = drive(engine, [request_of(task, f"r{i}") for i, task in enumerate(tasks)])
    seen: Counter[str] = Counter()
    for i, task in enumerate(tasks):
        answer, run = answers[f"r{i}"], reference.generate(task)
        finished = answer.finished
        assert (answer.tokens, finished.reason, finished.stop_token_id) == (run.tokens, run.reason, run.end_token), task
        assert finished.stats.denoising_steps == sum(run.steps), task
        commits = len(run.steps) - 1
        assert finished.stats.passes == sum(run.steps) + (0 if shared_commit else commits), task
        most = task.max_denoising_steps or 6
        seen.update({run.reason: 1, "commits": commits, "certain": sum(steps < most for steps in run.steps)})
        seen["all steps"] += sum(steps == most for steps in run.steps)
    return seen
