"""Holds an engine's answers against the reference loops, token for token."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from itertools import zip_longest
from typing import Any

import pytest

from engine.batch import Phase
from engine.engine import Engine
from engine.events import TokenLogprob, TokensSettled
from engine.request import DecodingParams, Mode, Request, SamplingParams
from tests.engine.driving import Answer, Visit, drive
from tests.reference.loops import Run, Task
from tests.reference.prompts import prompt_ids
from tests.reference.sampling import GREEDY, NEAR_TIE, Sampling
from tests.reference.transformer import ReferenceModel

Loop = Callable[[ReferenceModel, Task], Run]

SAMPLINGS: dict[str, Sampling] = {
    "greedy": GREEDY,
    "greedy_penalised": Sampling(repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.5),
    "plain": Sampling(temperature=0.8, seed=11),
    "hot": Sampling(temperature=1.3, seed=2**52 + 12345),
    "top_k": Sampling(temperature=1.0, top_k=5, seed=3),
    "top_p": Sampling(temperature=1.1, top_p=0.7, seed=4),
    "min_p": Sampling(temperature=1.3, min_p=0.05, seed=5),
    "everything": Sampling(
        temperature=0.9, top_k=40, top_p=0.95, min_p=0.01, seed=6, presence_penalty=0.3, frequency_penalty=0.2,
        repetition_penalty=1.1, logit_bias={2: 3.0, 17: 1.5, 40: -100.0}, min_tokens=6,
    ),
}  # fmt: skip

QUESTIONS = prompt_ids(12)
"""Prompts for the built-in model."""


def request_for(task: Task, mode: Mode, request_id: str = "r", **overrides: Any) -> Request:
    """The engine's request for a reference task."""
    sampling = {name: getattr(task.sampling, name) for name in task.sampling.__dataclass_fields__}
    schedule = DecodingParams(
        mode=mode,
        block_length=task.block_length,
        threshold=task.threshold,
        max_denoising_steps=task.max_denoising_steps,
        remasking=task.remasking,  # type: ignore[arg-type]
        unmasking=task.unmasking,
        factor=task.factor,
        bound=task.bound,
    )
    fields: dict[str, Any] = {
        "request_id": request_id,
        "prompt_token_ids": task.prompt,
        "max_tokens": task.max_tokens,
        "sampling": SamplingParams(**sampling),
        "decoding": schedule,
        "stop_token_ids": task.stop_token_ids,
        "ignore_eos": task.ignore_eos,
        "suffix_token_ids": task.suffix,
    }
    return Request(**(fields | overrides))


def answer_to(engine: Engine, task: Task, mode: Mode, **overrides: Any) -> Answer:
    """One request alone."""
    return drive(engine, [request_for(task, mode, **overrides)])["r"]


def answers_together(engine: Engine, requests: Iterable[Request], stagger: int = 1) -> dict[str, Answer]:
    """Requests in one batch, each joining `stagger` passes after the one before."""
    return drive(engine, [Visit(request, i * stagger) for i, request in enumerate(requests)])


def logprobs_of(answer: Answer) -> list[TokenLogprob]:
    """What was said about each shown token."""
    return [entry for event in answer.events if isinstance(event, TokensSettled) for entry in event.logprobs or []]


def spy_on_widths(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Fills the returned set with the lengths of all verified blocks, and 1 for plain decoding, as passes run."""
    widths: set[int] = set()
    forward = engine.runner.forward

    def spying(plan: Any) -> Any:
        widths.update(len(span.token_ids) for span in plan.spans if span.phase in (Phase.VERIFY, Phase.DECODE))
        return forward(plan)

    monkeypatch.setattr(engine.runner, "forward", spying)
    return widths


def agrees(answer: Answer, run: Run) -> bool:
    """True if the engine's answer is the reference's; False if they part at a recorded near tie; else fails."""
    finished = answer.finished
    stop_token = run.answer[-1] if run.reason == "stop" else None
    if (answer.tokens, finished.reason, finished.stop_token_id) == (run.visible, run.reason, stop_token):
        return True
    given = [*answer.tokens, finished.stop_token_id]
    wanted = [*run.visible, stop_token]
    parted = next(i for i, (ours, theirs) in enumerate(zip_longest(given, wanted)) if ours != theirs)
    margin = run.closest_call(parted)
    assert margin < NEAR_TIE, (
        f"answers part at token {parted}, decided by {margin:.2g} nats: engine {given} ({finished.reason}), "
        f"reference {wanted} ({run.reason}) for {run.task}"
    )
    return False


def assert_matches(engine: Engine, model: ReferenceModel, tasks: list[Task], mode: Mode, loop: Loop) -> None:
    """Every answer equals the reference's, but for at most one in ten that a recorded near tie explains."""
    near_ties = sum(not agrees(answer_to(engine, task, mode), loop(model, task)) for task in tasks)
    assert near_ties <= len(tasks) // 10, f"{near_ties} near ties in {len(tasks)} answers"


def random_prompt(length: int, seed: int = 0) -> list[int]:
    """Ordinary tokens of the random checkpoints: no mask, padding, start or end."""
    rng = random.Random(seed)
    return [rng.randrange(6, 95) for _ in range(length)]
