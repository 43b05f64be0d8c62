"""Checkpoints of the block families, in the engine and as references, made once a session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from tests.engine.decoding.blocks.cases import BlockPair, make_block_pair

Pairs = Callable[[str, str], BlockPair]


@pytest.fixture(scope="session")
def block_pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """(name of the checkpoint, dtype) -> the pair."""
    root = tmp_path_factory.mktemp("block_checkpoints")

    @cache
    def pair(name: str, dtype: str) -> BlockPair:
        return make_block_pair(root, name, dtype)

    return pair
