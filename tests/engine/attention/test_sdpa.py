"""SdpaAttention against dense attention: every phase, any mix of them, and nothing read that is not the span's own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.attention import sdpa
from engine.attention.sdpa import SdpaAttention
from tests.engine.attention.paged_sequences import HEAD_DIM, NUM_HEADS, NUM_KV_HEADS, PagedSequences, SpanOf

torch.set_num_threads(1)

PHASES = {
    "prefill from the start": [SpanOf(0, 0, 13)],
    "prefill chunk after context": [SpanOf(1, 21, 9)],
    "decode": [SpanOf(2, 30, 1)],
    "canvas": [SpanOf(3, 17, 8, limit=25)],
    "canvas longer than its answer": [SpanOf(3, 17, 5, limit=5 + 17)],
    "infill window behind the canvas": [SpanOf(4, 6, 20, limit=26)],
    "infill: a canvas that sees the suffix beyond": [SpanOf(4, 6, 8, limit=26)],
    "block-causal": [SpanOf(5, 8, 12, limit=[12] * 4 + [16] * 4 + [20] * 4)],
    "bidirectional": [SpanOf(6, 0, 19, limit=19)],
    "commit and next canvas in one pass": [SpanOf(7, 10, 8), SpanOf(7, 18, 8, limit=26)],
    "many decodes of one length": [SpanOf(row, 12, 1) for row in range(8)],
    "many decodes of ragged lengths": [SpanOf(row, 1 + 5 * row, 1) for row in range(12)],
    "decodes of lengths in no order": [SpanOf(row, start, 1) for row, start in enumerate([40, 10, 20, 5])],
    "many canvases of ragged lengths": [SpanOf(row, 7 * row, 8, limit=7 * row + 8) for row in range(12)],
    "many verifications": [SpanOf(row, 4 * row, 8) for row in range(9)],
    "spans of one length kept apart by others": [
        SpanOf(0, 9, 4, limit=13),
        SpanOf(1, 20, 1),
        SpanOf(2, 5, 4),
        SpanOf(3, 2, 7),
        SpanOf(4, 40, 4, limit=44),
        SpanOf(5, 3, 1),
    ],
}


def with_context(spans: list[SpanOf], dtype: torch.dtype = torch.float64) -> PagedSequences:
    """A world in which every position a span sees, but no span of the pass computes, holds context."""
    world = PagedSequences(dtype)
    for row in {span.row for span in spans}:
        world.fill(row, 0, max(max(span.limits) for span in spans if span.row == row))
    return world


@pytest.mark.parametrize("spans", PHASES.values(), ids=PHASES)
def test_every_phase_attends_to_its_light_cone(spans: list[SpanOf]) -> None:
    world = with_context(spans)
    world.check(world.backend(), spans)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("spans", PHASES.values(), ids=PHASES)
def test_every_phase_holds_in_the_types_models_are_served_in(
    spans: list[SpanOf], dtype: torch.dtype, tolerance: float
) -> None:
    world = with_context(spans, dtype)
    world.check(world.backend(), spans, tolerance)


@st.composite
def passes(draw: st.DrawFn) -> list[SpanOf]:
    """A mixed pass: each sequence takes part with one span, or with a commit and its next canvas."""
    spans: list[SpanOf] = []
    for row in draw(st.permutations(range(6)))[: draw(st.integers(1, 6))]:
        start, length = draw(st.integers(0, 40)), draw(st.sampled_from([1, 1, 3, 4, 4, 17]))
        kind = draw(st.sampled_from(["causal", "canvas", "window", "shared"]))
        if kind == "shared":
            spans += [SpanOf(row, start, length), SpanOf(row, start + length, 4, limit=start + length + 4)]
        else:
            beyond = draw(st.integers(0, 9)) if kind == "window" else 0
            spans.append(SpanOf(row, start, length, None if kind == "causal" else start + length + beyond))
    return draw(st.permutations(spans))


@settings(max_examples=60, deadline=None)
@given(
    first=passes(),
    second=passes(),
    tile=st.sampled_from([2, 5, 128]),
    scratch=st.sampled_from([1, 700, 1 << 19]),
    padding=st.sampled_from([0, 60, 8192]),
)
def test_any_mix_of_phases_gives_each_sequence_its_own_answer(
    first: list[SpanOf], second: list[SpanOf], tile: int, scratch: int, padding: int
) -> None:
    """However the pass is cut into calls, and whatever the pass before left in the scratch buffer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sdpa, "QUERY_TILE", tile)
        patch.setattr(sdpa, "SCRATCH_ELEMENTS", scratch)
        patch.setattr(sdpa, "PADDING_BUDGET", padding)
        world = with_context(first + second)
        backend = world.backend()
        world.check(backend, first)
        world.check(backend, second)


def test_a_long_prompt_is_prefilled_in_tiles_without_changing_it() -> None:
    world = PagedSequences(num_pages=260, max_positions=1000)
    world.fill(0, 0, 301)
    world.fill(1, 0, 40)
    world.check(world.backend(), [SpanOf(1, 40, 1), SpanOf(0, 301, 2 * sdpa.QUERY_TILE + 3), SpanOf(1, 41, 1)])


def test_a_long_prompt_needs_no_mask_per_head() -> None:
    """2048 tokens against 8k positions are 64 MiB of float32 mask; times the heads they would be a machine's memory."""
    world = PagedSequences(num_pages=260, max_positions=1000)
    backend = world.backend()
    backend.prepare(world.pack([SpanOf(0, 400, 600)]))
    (segment,) = backend._segments
    assert sum(tile.mask.numel() for tile in segment.tiles) < 600 * 1000


@pytest.mark.parametrize("budget", [1, 2000, 1 << 19])
def test_many_long_contexts_are_not_gathered_all_at_once(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy of the KV that one call reads is bounded, unless a single context is larger than the bound."""
    monkeypatch.setattr(sdpa, "SCRATCH_ELEMENTS", budget)
    world = PagedSequences()
    backend = world.backend()
    backend.prepare(world.pack([SpanOf(row, 30 + row, 1) for row in range(12)]))
    largest_context = 44 * NUM_KV_HEADS * HEAD_DIM
    assert max(segment.key_pages.numel() for segment in backend._segments) <= max(budget, largest_context)


def test_requests_that_share_a_prefix_read_the_same_pages() -> None:
    world = PagedSequences()
    world.fill(0, 0, 22)
    for row in (1, 2):
        world.share(0, row, 5)
    spans = [SpanOf(0, 22, 1), SpanOf(1, 20, 9), SpanOf(2, 20, 4, limit=24)]
    backend = world.backend()
    world.check(backend, spans)
    world.check(backend, [SpanOf(0, 23, 1), SpanOf(1, 29, 1), SpanOf(2, 24, 1)])


def test_a_commit_does_not_see_the_canvas_that_shares_its_pass() -> None:
    """Else a settled block's KV would depend on masks, and on whether the next canvas came along."""
    commit, canvas = SpanOf(0, 10, 8), SpanOf(0, 18, 8, limit=26)
    q, k, v = (torch.randn(16, heads, HEAD_DIM).double() for heads in (NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS))
    results = []
    for spans, num_tokens in (([commit], 8), ([commit, canvas], 16)):
        world = PagedSequences()
        world.fill(0, 0, 26)
        backend = world.backend()
        backend.prepare(world.pack(spans))
        results.append(backend.forward(q[:num_tokens], k[:num_tokens], v[:num_tokens], 0)[:8])
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)


def test_one_requests_nan_reaches_no_other_in_the_same_pass() -> None:
    world = PagedSequences()
    world.fill(0, 0, 30)
    world.fill(1, 0, 6)
    world.fill(2, 0, 30)
    for stored in (world.pool.k, world.pool.v):
        stored[:, world.slots(0, 3, 1)] = torch.nan
    batch = world.pack([SpanOf(0, 30, 4), SpanOf(1, 6, 4, limit=10), SpanOf(2, 30, 4)])
    backend = world.backend()
    backend.prepare(batch)
    q, k, v = world.draw(12, NUM_HEADS, HEAD_DIM), *(world.draw(12, NUM_KV_HEADS, HEAD_DIM) for _ in range(2))
    result = backend.forward(q, k, v, 0)
    assert result[:4].isnan().all()
    torch.testing.assert_close(result[4:], world.dense(batch, q, k, v, 0)[4:], rtol=1e-12, atol=1e-12)


def test_cleared_pages_serve_their_next_owner() -> None:
    """A masked NaN is still NaN: without `clear`, the request after a broken one would break too."""
    world = PagedSequences()
    world.fill(0, 0, 30)
    pages = world.pages.pop(0)
    world.pool.k.view(2, world.num_pages, -1)[:, pages] = torch.nan
    world.pool.v.view(2, world.num_pages, -1)[:, pages] = torch.inf
    world.pool.clear(pages)
    world.free += pages
    world.check(world.backend(), [SpanOf(0, 0, 5), SpanOf(1, 0, 1)])
    assert world.pages[0][0] in pages or world.pages[1][0] in pages


def test_work_does_not_grow_with_the_pool() -> None:
    spans = [SpanOf(0, 20, 4), SpanOf(1, 3, 1)]
    sizes = []
    for num_pages in (30, 3000):
        world = PagedSequences(num_pages=num_pages)
        backend = world.backend()
        backend.prepare(world.pack(spans))
        sizes.append([(segment.pages.numel(), segment.key_pages.numel()) for segment in backend._segments])
    assert sizes[0] == sizes[1]


def test_a_backend_warmed_up_in_inference_mode_works_outside_it() -> None:
    world = PagedSequences()
    backend = world.backend()
    with torch.inference_mode():
        world.check(backend, [SpanOf(0, 0, 9)])
    world.check(backend, [SpanOf(0, 9, 1)])


def test_heads_that_cannot_share_kv_heads_evenly_are_refused() -> None:
    with pytest.raises(ValueError, match="5 query heads cannot share 2 KV heads"):
        SdpaAttention(PagedSequences().pool, 5)
