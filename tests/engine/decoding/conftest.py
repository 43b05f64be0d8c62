"""Checkpoints, engines and reference models, made once a session."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.engine import Engine
from engine.models.files import model_directory
from tests.conftest import MakeEngine, engine_maker
from tests.reference.checkpoints import write_checkpoint
from tests.reference.transformer import ReferenceModel

# By name: what `write_checkpoint` is told. All have YaRN and query scaling that change every 16 positions.
# The logits of "calm" are almost level, so that with noise drafts are mostly accepted, whole blocks included.
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "clear": {"seed": 0},
    "flat": {"seed": 1, "logit_scale": 1.0, "num_key_value_heads": 1, "num_hidden_layers": 3},
    "calm": {"seed": 3, "logit_scale": 0.25},
    "wide_heads": {"seed": 2, "logit_scale": 6.0, "head_dim": 24, "num_key_value_heads": 4, "mask_token_id": 95},
}


@dataclass(frozen=True)
class Pair:
    """One checkpoint, in the engine and in the reference."""

    name: str
    make: MakeEngine
    engine: Engine
    """Never drafts ahead, so that its passes are the reference's."""
    reference: ReferenceModel


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """Every random checkpoint, in float64."""
    root = tmp_path_factory.mktemp("checkpoints")
    directories = {name: write_checkpoint(root / name, **settings) for name, settings in CHECKPOINTS.items()}
    return {name: make_pair(name, directory, "float64") for name, directory in directories.items()}


@pytest.fixture(params=["clear", "flat", "wide_heads"])
def pair(request: pytest.FixtureRequest, pairs: dict[str, Pair]) -> Pair:
    """One random checkpoint after the other."""
    return pairs[request.param]


@pytest.fixture(scope="session")
def builtin() -> Pair:
    """The built-in model in float32."""
    return make_pair("builtin", model_directory("builtin"), "float32")


def make_pair(name: str, directory: Path, dtype: str) -> Pair:
    """One checkpoint. The pool is small: the books are checked after every pass, page by page."""
    make = engine_maker(directory, dtype)
    engine = make(kv_cache_tokens=512, shared_verify_below=0, shared_commit=False)
    return Pair(name, make, engine, ReferenceModel(directory, getattr(torch, dtype)))
