"""A pass from packed arrays alone. If one fails, a device cannot run what the host has planned."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.attention.packed_pass import MappedPages, PackedPass
from engine.engine import Engine
from engine.runner.device_pass import DevicePass
from engine.runner.model_runner import split_logits
from tests.conftest import MakeEngine
from tests.engine.driving import ask


@pytest.fixture
def device_pass(tiny_engine: MakeEngine) -> DevicePass:
    return tiny_engine().runner.device_pass


def causal(ids: list[int], start: int, pages: list[int], rows: list[int], mapped: int = 0) -> PackedPass:
    """Tokens of one sequence from `start` on, in row 0; the first `mapped` of its pages are known."""
    positions = np.arange(start, start + len(ids))
    slots = np.array(pages)[positions // 16] * 16 + positions % 16
    return PackedPass(
        inputs=np.array((ids, positions, positions + 1, slots), dtype=np.int64),
        logit_rows=np.array(rows, dtype=np.int64),
        span_offsets=[0, len(ids)],
        span_rows=[0],
        span_kv_ends=[start + len(ids)],
        drafting=None,
        mapped_pages=[MappedPages(0, mapped, pages[mapped:])] if mapped < len(pages) else [],
    )


def test_two_passes_equal_one_in_whichever_pages(device_pass: DevicePass) -> None:
    """The page table follows the arrays alone: the second pass would not see what the first one wrote."""
    ids = [7 + i % 80 for i in range(24)]
    whole = device_pass.run(causal(ids, 0, [3, 9], list(range(24))))
    first = device_pass.run(causal(ids[:10], 0, [5], list(range(10))))
    second = device_pass.run(causal(ids[10:], 10, [5, 1], list(range(14)), mapped=1))
    assert whole is not None
    assert first is not None
    assert second is not None
    torch.testing.assert_close(torch.cat((first, second)), whole)
    assert device_pass.pool.page_table[0, :2].tolist() == [5, 1]


def test_only_the_rows_asked_for_become_logits(device_pass: DevicePass) -> None:
    ids = [7, 8, 9, 10]
    whole = device_pass.run(causal(ids, 0, [0], [0, 1, 2, 3]))
    some = device_pass.run(causal(ids, 0, [0], [1, 3]))
    assert whole is not None
    assert some is not None
    assert whole.shape == (4, 96)
    torch.testing.assert_close(some, whole[[1, 3]])
    assert device_pass.run(causal(ids, 0, [0], [])) is None


def test_pages_are_cleared_before_anything_is_read_or_written(device_pass: DevicePass) -> None:
    """NaN of the last owner would reach the next one, or what the pass itself writes would be lost."""
    pool = device_pass.pool
    clean = device_pass.run(causal([7, 8, 9], 0, [2], [2]))
    pool.k.fill_(torch.nan)
    pool.v.fill_(torch.nan)
    packed = causal([7, 8, 9], 0, [2], [2])
    packed.cleared_pages = [2]
    again = device_pass.run(packed)
    assert clean is not None
    assert again is not None
    torch.testing.assert_close(again, clean)
    assert pool.k[0, 32:35].any()
    assert pool.k[0, :32].isnan().all()


def test_a_runner_packs_runs_and_splits(tiny_engine: MakeEngine) -> None:
    """A group would get the logits of its neighbour."""
    engine: Engine = tiny_engine()
    for i in range(3):
        engine.add(ask(f"r{i}", [7 + i] * (3 + i), max_tokens=2))
    plan = engine.scheduler.schedule()
    groups = engine.runner.forward(plan)
    assert [None if rows is None else tuple(rows.shape) for rows in groups] == [
        (len(group.spans), group.num_logits, 96) if group.num_logits else None for group in plan.groups
    ]
    assert split_logits(plan, None) == [None] * len(plan.groups)
