"""A random I-DLM in the engine and as a reference, made once a session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch

from tests.conftest import MakeEngine, engine_maker
from tests.reference.block_checkpoints import write_block_checkpoint
from tests.reference.denoising.introspective import CausalModel
from tests.reference.grammars import write_tokenizer


@dataclass(frozen=True)
class IntrospectivePair:
    """One checkpoint, in the engine and as a reference that does not compute anything twice."""

    make: MakeEngine
    reference: CausalModel


IntrospectivePairs = Callable[[str], IntrospectivePair]


@pytest.fixture(scope="session")
def idlm(tmp_path_factory: pytest.TempPathFactory) -> IntrospectivePairs:
    """dtype -> the pair. config.json is the published one but for its size: it says SDAR, and a block of 3."""
    directory = tmp_path_factory.mktemp("idlm")
    write_block_checkpoint(directory, "sdar", seed=5, logit_scale=0.5, block_size=3, max_position_embeddings=320)
    tokenizer = directory / "tokenizer.json"
    write_tokenizer(tokenizer)
    tokenizer.write_text(tokenizer.read_text().replace("<|mask|>", "<|MASK|>"))

    @cache
    def pair(dtype: str) -> IntrospectivePair:
        reference = CausalModel(directory, "sdar", 1, getattr(torch, dtype))
        known: dict[tuple[int, ...], Any] = {}
        compute = reference.block_causal

        def remembering(ids: list[int]) -> Any:
            key = tuple(ids)
            if key not in known:
                known[key] = compute(ids)
            return known[key]

        reference.block_causal = remembering  # type: ignore[method-assign]
        return IntrospectivePair(engine_maker(directory, dtype, "idlm"), reference)

    return pair
