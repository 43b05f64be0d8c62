"""Fixtures shared by the whole suite. Importing this file does not import torch: the server's tests need none."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from engine.engine import Engine

# Read when torch is first imported, here and in every process a test starts: tests run beside each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Read when triton is first imported: without it, nothing tests the GPU's kernels where there is no GPU.
os.environ.setdefault("TRITON_INTERPRET", "1")

MakeEngine = Callable[..., "Engine"]


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint in the published layout, draft adapter included: 96 tokens, 512 positions, block length 8."""
    from tests.reference.checkpoints import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny", lora_rank=4)


@pytest.fixture(scope="session")
def tiny_engine(tiny_checkpoint: Path) -> MakeEngine:
    """Makes fresh float64 engines of the tiny checkpoint; they share weights, so one costs a few milliseconds."""
    return engine_maker(tiny_checkpoint, "float64")


@pytest.fixture(scope="session")
def text_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint whose tokens have texts, for grammars."""
    from tests.reference.grammars import write_text_checkpoint

    return write_text_checkpoint(tmp_path_factory.mktemp("models") / "text")


@pytest.fixture(scope="session")
def text_engine(text_checkpoint: Path) -> MakeEngine:
    """Makes fresh float64 engines of the checkpoint whose tokens have texts."""
    return engine_maker(text_checkpoint, "float64")


@pytest.fixture(scope="session")
def builtin_engine() -> MakeEngine:
    """Makes fresh float32 engines of the built-in model; they share weights."""
    from engine.models.files import model_directory

    return engine_maker(model_directory("builtin"), "float32")


def engine_maker(directory: Path, dtype: str, family: str | None = None, *, overrides: Any = None) -> MakeEngine:
    """A function from EngineConfig fields to an engine of one model; by default a small one that measures nothing.

    family: what the operator says it is; None: what config.json says. overrides: all that the operator says.
    """
    import torch

    from engine.assembly import assemble
    from engine.config import EngineConfig, check_config
    from engine.engine import Engine
    from engine.models.families.overrides import Overrides
    from engine.models.loader import DTYPES, load_model

    torch.set_num_threads(1)
    device = torch.device("cpu")

    @cache
    def model() -> Any:
        said = overrides or Overrides(family=family)
        return load_model(directory, dtype=DTYPES[dtype], device=device, overrides=said)

    def make(**changes: Any) -> Engine:
        settings: dict[str, Any] = {
            "model": str(directory), "dtype": dtype, "device": "cpu", "threads": 1, "calibration_seconds": 0,
            "kv_cache_tokens": 2048, "max_running": 8, "max_batch_tokens": 256, "max_infill_window": 64,
        }  # fmt: skip
        config = EngineConfig(**(settings | changes))
        check_config(config)
        return Engine(assemble(config, model(), device))

    return make
