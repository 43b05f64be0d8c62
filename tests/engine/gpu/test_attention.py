"""TritonAttention against dense attention, in Triton's interpreter: every phase, any mix of them, any head layout.

If one fails, answers on a GPU are wrong: a token sees what it must not, or another request's KV. Contexts are split
between programs far earlier than in service, so that the merging of splits is part of every test.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tests.engine.gpu.interpreted", exc_type=ImportError)

from engine.gpu import attention as triton_paged
from engine.gpu.attention import TritonAttention
from tests.engine.attention.paged_sequences import PagedSequences, SpanOf
from tests.engine.attention.test_sdpa import PHASES, passes

torch.set_num_threads(1)

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}
ALONE, SPLIT = 1, 10_000
"""Programs to aim at: so few that no context is split, and so many that every one is."""


@pytest.fixture(autouse=True)
def _hostile_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short splits, and outputs that are NaN until the kernel has written them."""
    empty = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        made = empty(*args, **kwargs)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(triton_paged, "MIN_SPLIT", 32)
    monkeypatch.setattr(torch, "empty", poisoned)


def world_for(spans: list[SpanOf], dtype: torch.dtype = torch.float32, **shape: int) -> PagedSequences:
    world = PagedSequences(dtype, **({"head_dim": 32} | shape))
    for row in {span.row for span in spans}:
        world.fill(row, 0, max(max(span.limits) for span in spans if span.row == row))
    return world


def backend_of(world: PagedSequences, programs: int) -> TritonAttention:
    return TritonAttention(world.pool, world.num_heads, programs=programs)


@pytest.mark.parametrize(("dtype", "programs"), [(torch.float32, ALONE), (torch.bfloat16, SPLIT)])
@pytest.mark.parametrize("spans", PHASES.values(), ids=PHASES)
def test_every_phase_attends_to_its_light_cone(spans: list[SpanOf], dtype: torch.dtype, programs: int) -> None:
    world = world_for(spans, dtype)
    world.check(backend_of(world, programs), spans, TOLERANCE[dtype])


@settings(max_examples=8, deadline=None)
@given(
    first=passes(),
    second=passes(),
    heads=st.sampled_from([(1, 1), (6, 2), (8, 2), (3, 3), (5, 1)]),
    page_size=st.sampled_from([1, 4, 16]),
    programs=st.sampled_from([ALONE, 24, SPLIT]),
)
def test_any_mix_of_phases_gives_each_sequence_its_own_answer(
    first: list[SpanOf], second: list[SpanOf], heads: tuple[int, int], page_size: int, programs: int
) -> None:
    num_heads, num_kv_heads = heads
    world = world_for(
        first + second, num_heads=num_heads, num_kv_heads=num_kv_heads, page_size=page_size, num_pages=900
    )
    backend = backend_of(world, programs)
    world.check(backend, first, TOLERANCE[torch.float32])
    world.check(backend, second, TOLERANCE[torch.float32])


@pytest.mark.parametrize("head_dim", triton_paged.HEAD_DIMS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_every_head_size_models_have(head_dim: int, dtype: torch.dtype) -> None:
    spans = [SpanOf(0, 70, 8, limit=78), SpanOf(1, 33, 1), SpanOf(2, 0, 5)]
    world = world_for(spans, dtype, head_dim=head_dim)
    world.check(backend_of(world, SPLIT), spans, TOLERANCE[dtype])


def test_a_span_of_many_tiles_beside_a_short_one() -> None:
    """A prompt's chunk is cut into tiles of queries; a decode of the same pass lies in one that is mostly padding."""
    spans = [SpanOf(0, 11, 101), SpanOf(1, 90, 1)]
    world = world_for(spans, torch.bfloat16)
    backend = backend_of(world, SPLIT)
    world.check(backend, spans, TOLERANCE[torch.bfloat16])
    assert len(backend._layout) - 1 > 2
    assert backend._num_splits > 1


def test_queries_that_see_nothing_of_a_split_give_it_no_weight() -> None:
    """The first tokens of a prompt end in the first split, beside a request whose context fills four."""
    spans = [SpanOf(0, 0, 3), SpanOf(1, 120, 2)]
    world = world_for(spans)
    backend = backend_of(world, SPLIT)
    world.check(backend, spans, TOLERANCE[torch.float32])
    assert backend._num_splits == 4


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_warming_up_writes_to_the_first_slot_alone() -> None:
    world = PagedSequences(torch.bfloat16, head_dim=32)
    world.pool.k.fill_(7.0)
    backend_of(world, SPLIT).warm_up()
    assert (world.pool.k != 7.0).flatten(2).any(-1).nonzero().tolist() == [[0, 0]]


@pytest.mark.parametrize("programs", [ALONE, SPLIT])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_one_requests_nan_reaches_no_other_in_the_same_pass(programs: int) -> None:
    world = world_for([SpanOf(0, 30, 4), SpanOf(1, 6, 4, limit=10), SpanOf(2, 30, 4)])
    for stored in (world.pool.k, world.pool.v):
        stored[:, world.slots(0, 3, 1)] = torch.nan
    batch = world.pack([SpanOf(0, 30, 4), SpanOf(1, 6, 4, limit=10), SpanOf(2, 30, 4)])
    backend = backend_of(world, programs)
    backend.prepare(batch)
    q = world.draw(12, world.num_heads, world.head_dim)
    k, v = (world.draw(12, world.num_kv_heads, world.head_dim) for _ in range(2))
    result = backend.forward(q.float(), k.float(), v.float(), 0)
    assert result[:4].isnan().all()
    expected = world.dense(batch, q, k, v, 0)
    torch.testing.assert_close(result[4:].double(), expected[4:], rtol=2e-6, atol=2e-6)


def test_projections_may_be_strided_views() -> None:
    """The decoder hands over slices of one fused product."""
    spans = [SpanOf(0, 9, 4, limit=13)]
    world = world_for(spans)
    backend = backend_of(world, ALONE)
    backend.prepare(world.pack(spans))
    fused = world.draw(4, world.num_heads + 2 * world.num_kv_heads, world.head_dim).float()
    q, k, v = fused.split_with_sizes((world.num_heads, world.num_kv_heads, world.num_kv_heads), dim=1)
    viewed = backend.forward(q, k, v, 0)
    transposed = backend.forward(q.transpose(1, 2).contiguous().transpose(1, 2), k, v, 0)
    copied = backend.forward(q.contiguous(), k.contiguous(), v.contiguous(), 0)
    assert torch.equal(viewed, copied)
    assert torch.equal(transposed, copied)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"num_heads": 5}, "5 query heads cannot share 2 KV heads"),
        ({"head_dim": 48}, "no kernel for heads of 48"),
        ({"dtype": torch.float64}, "no kernel for torch.float64"),
        ({"num_heads": 300}, "at most 16 query heads a KV head in torch.float32, not 150"),
        ({"page_size": 12}, "a power of two, not 12"),
    ],
)
def test_what_the_kernel_cannot_do_is_refused(shape: dict[str, Any], message: str) -> None:
    world = PagedSequences(**({"dtype": torch.float32, "head_dim": 32} | shape))
    with pytest.raises(ValueError, match=message):
        backend_of(world, ALONE)
