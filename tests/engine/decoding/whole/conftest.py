"""Engines of the families that see the whole text, beside their reference models, made once a session."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec
import pytest
import torch

from engine.engine import Engine
from engine.request import Request
from tests.conftest import MakeEngine, engine_maker
from tests.engine.decoding.harness import agrees, random_prompt, request_for
from tests.engine.driving import drive
from tests.reference.bidirectional.checkpoints import (
    dream_config,
    llada_config,
    llada_moe_config,
    write_whole_checkpoint,
)
from tests.reference.bidirectional.loops import DREAM_ORDERS, WholeTask, whole
from tests.reference.bidirectional.model import WholeModel
from tests.reference.sampling import GREEDY, Sampling

ORDERS: dict[str, Sequence[str]] = {"llada": ("low_confidence", "random"), "dream": DREAM_ORDERS}
MIXTURE_ORDERS = ORDERS["llada"]
"""Of LLaDA-MoE, whose own loop is LLaDA's."""
SAMPLED = (
    Sampling(temperature=0.8, seed=11),
    Sampling(temperature=1.2, top_k=6, top_p=0.8, seed=2**40),
    Sampling(temperature=0.7, repetition_penalty=1.2, frequency_penalty=0.3, min_tokens=1, seed=3),
)
CONFIDENT = ("low_confidence", "maskgit_plus")


@dataclass(frozen=True)
class Family:
    """One checkpoint in the engine and in the reference, in one precision."""

    name: str
    reference: WholeModel
    make: MakeEngine

    @cache  # noqa: B019 - lives as long as the session
    def engine(self, context_cache: str = "none") -> Engine:
        """A small engine, whose books are checked after every pass."""
        return self.make(context_cache=context_cache, kv_cache_tokens=512)

    def check(self, tasks: Sequence[WholeTask], context_cache: str = "none") -> int:
        """Answers, pass counts and streams equal the reference's, all run side by side; a recorded near tie excuses one
        in fifty.

        Returns how many answers ended at an end token.
        """
        near_ties, ended = 0, 0
        requests = [whole_request(task, f"r{i}") for i, task in enumerate(tasks)]
        answers = drive(self.engine(context_cache), requests)
        for i, task in enumerate(tasks):
            run, answer = whole(self.reference, task, context_cache), answers[f"r{i}"]
            if agrees(answer, run):
                assert answer.finished.stats.passes == run.passes, task
            else:
                near_ties += 1
            ended += run.reason == "stop"
        assert near_ties <= len(tasks) // 50
        return ended


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Family]:
    """By name and precision."""
    root = tmp_path_factory.mktemp("whole")
    # A dense layer and one of experts: all that there is in more of them, for a loop over experts in the reference.
    mixture = llada_moe_config(num_hidden_layers=2, moe_layer_freq=[0, 1], num_experts=8, num_experts_per_tok=2)
    configs = {"llada": llada_config(), "dream": dream_config(), "llada_moe": mixture}
    found = {}
    for name, config in configs.items():
        directory = write_whole_checkpoint(root / name, config, logit_scale=3.0)
        for dtype in ("float64", "float32"):
            reference = WholeModel(directory, getattr(torch, dtype))
            found[name, dtype] = Family(name, reference, engine_maker(directory, dtype))
    return found


def whole_request(task: WholeTask, request_id: str = "r", **overrides: Any) -> Request:
    """The engine's request for a reference task."""
    request = request_for(task, "diffusion" if task.suffix is None else "infill", request_id, **overrides)
    decoding = msgspec.structs.replace(request.decoding, remasking=task.remasking)
    return msgspec.structs.replace(request, decoding=decoding)


def random_task(rng: random.Random, family: str, order: str, *, sampling: Sampling = GREEDY) -> WholeTask:
    """A small case: prompts and answers around block boundaries, with end tokens that come early, late or never."""
    block = rng.choice((0, 4, 8) if family == "dream" else (4, 8))
    unit = block or 8
    max_tokens = rng.choice((1, 2, unit - 1, unit, unit + 1, 2 * unit, 2 * unit + 3))
    suffix = random_prompt(rng.choice((1, 5)), rng.randrange(99)) if rng.random() < 0.2 else None
    longest = max_tokens if suffix is not None or not block else block
    return WholeTask(
        prompt=random_prompt(rng.choice((1, 3, 7, 8, 9, 16)), rng.randrange(10**6)),
        max_tokens=max_tokens,
        block_length=block,
        remasking=order,
        threshold=rng.choice((None, 0.2, 0.5)) if order in CONFIDENT else None,
        max_denoising_steps=rng.choice((None, None, 1, min(3, longest), longest)),
        sampling=sampling,
        suffix=suffix,
        stop_token_ids=() if suffix is not None else tuple(rng.sample(range(6, 95), rng.choice((0, 4, 25)))),
    )
