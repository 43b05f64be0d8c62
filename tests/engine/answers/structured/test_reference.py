"""Structured answers of `diffusion` against the reference loop, token for token and pass for pass.

If one fails, the text is not the one that the rules give, or takes more passes than they say.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import MakeEngine
from tests.engine.decoding.harness import SAMPLINGS, agrees, answer_to
from tests.reference.denoising.structured_loops import structured_diffusion
from tests.reference.grammars import CLOSING, GRAMMARS, compiled, text_of
from tests.reference.loops import Task
from tests.reference.transformer import ReferenceModel

SCHEDULES: list[dict[str, Any]] = [
    {"threshold": 0.9}, {"threshold": 0.2}, {"threshold": 0.02, "block_length": 5},
    {"threshold": None, "max_denoising_steps": 3},
    {"threshold": 0.1, "unmasking": "factor", "factor": 1.0, "block_length": 16},
    {"threshold": 1e-6},
]  # fmt: skip


@pytest.mark.parametrize("shared", [False, True], ids=["separate", "shared"])
@pytest.mark.parametrize("name", GRAMMARS)
def test_writes_what_the_reference_writes(
    text_checkpoint: Path, text_engine: MakeEngine, name: str, shared: bool
) -> None:
    """Other text, or more passes, than the rules say: token for token, in every schedule and with every sampling."""
    grammar, is_valid = GRAMMARS[name]
    model = ReferenceModel(text_checkpoint, torch.float64)
    engine, known, stopped = text_engine(shared_commit=shared), compiled(text_checkpoint, grammar), 0
    for i, (sampling, schedule) in enumerate(list(itertools.product(SAMPLINGS.values(), SCHEDULES))[shared::3]):
        bias = CLOSING if i % 3 else sampling.logit_bias
        biased = dataclasses.replace(sampling, logit_bias=bias, min_tokens=0)
        task = Task(prompt=[40, 41, 42][: 1 + i % 3], max_tokens=14 + i % 17, sampling=biased, **schedule)
        run = structured_diffusion(model, task, known, shared=shared)
        answer = answer_to(engine, task, "diffusion", grammar=grammar)
        assert agrees(answer, run)
        stats = answer.finished.stats
        assert (stats.passes, stats.denoising_steps) == (run.passes, run.denoising_steps)
        if run.reason == "stop":
            stopped += 1
            assert is_valid(text_of(answer.tokens)), text_of(answer.tokens)
    assert stopped > 2, "hardly an answer came to its end: little was checked"
