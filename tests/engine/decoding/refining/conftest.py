"""Checkpoints of refinement, in the engine and as references, made once a session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from tests.conftest import MakeEngine, engine_maker
from tests.reference.refining.checkpoints import write_refining_checkpoint
from tests.reference.refining.module import RefiningReference

Pair = tuple[MakeEngine, RefiningReference]
Pairs = Callable[[str], Pair]

CALM = {"calm": 0.7, "logit_scale": 6.0, "final_logit_softcapping": 30.0}
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "calm": CALM,  # canvases end early or take all their steps
    "restless": {},  # every position keeps changing
    "patient": CALM | {"calm": 0.5, "generation": {"stability_threshold": 2}},
    "hasty": CALM | {"generation": {"stability_threshold": 0, "confidence_threshold": 0.9}},
}
"""What `write_refining_checkpoint` is told, by name."""


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """By name: the same weights in the engine and in transformers' module, in float64."""
    root = tmp_path_factory.mktemp("refining")

    @cache
    def pair(name: str) -> Pair:
        torch.set_num_threads(1)
        directory = write_refining_checkpoint(root / name, **CHECKPOINTS[name])
        return engine_maker(directory, "float64"), RefiningReference(directory)

    return pair


@pytest.fixture
def pair(pairs: Pairs) -> Pair:
    """The checkpoint of which canvases end early or take all their steps."""
    return pairs("calm")
