"""Attention by windows, and of layers of several shapes, against dense attention. If one fails, tokens see what they
must not, or miss what they were trained to see."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.attention.windows import LayeredAttention, WindowAttention
from tests.engine.attention.paged_sequences import NUM_LAYERS, PagedSequences, SpanOf


def origins_of(spans: list[SpanOf]) -> list[int]:
    """Where the window of each token is counted from: a span that sees itself whole is a canvas."""
    return [
        span.start if isinstance(span.limit, int) else place
        for span in spans
        for place in range(span.start, span.start + span.length)
    ]


def windowed(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, limits: list[int], first: list[int], scale: float
) -> torch.Tensor:
    """Token by token: token t sees [first[t], limits[t]). q: [T, heads, d]; keys, values: [P, kv_heads, d]."""
    group, rows = q.shape[1] // keys.shape[1], []
    for query, start, end in zip(q, first, limits, strict=True):
        k, v = (x[max(start, 0) : end].repeat_interleave(group, 1) for x in (keys, values))
        weights = (torch.einsum("hd,phd->hp", query, k) * scale).softmax(-1)
        rows.append(torch.einsum("hp,phd->hd", weights, v))
    return torch.stack(rows)


@st.composite
def passes(draw: st.DrawFn) -> list[SpanOf]:
    """Spans of different sequences: causal ones, and canvases that see themselves whole."""
    spans = []
    for row in range(draw(st.integers(1, 5))):
        start = draw(st.sampled_from((0, 1, 3, 8, 17, 40, 60)))
        if draw(st.booleans()):
            spans.append(SpanOf(row, start, 8, start + 8))
        else:
            spans.append(SpanOf(row, start, draw(st.sampled_from((1, 2, 8, 33, 60)))))
    return spans


@settings(max_examples=40, derandomize=True, deadline=None, database=None)
@given(passes(), st.integers(1, 20), st.sampled_from((1, 4, 16)))
def test_a_token_sees_its_window_and_no_more(spans: list[SpanOf], window: int, page_size: int) -> None:
    """Also where pages out of sight belong to somebody else by now: they are never read."""
    world = PagedSequences(page_size=page_size, num_pages=1000, max_positions=160)
    for span in spans:
        if span.start:
            world.fill(span.row, 0, span.start)
    batch = world.pack(spans)
    origins = origins_of(spans)
    batch.host_origins = np.array(origins)
    for span in spans:  # pages that no token of the span sees
        for column in range(max(0, span.start + 1 - window) // page_size):
            world.pool.map_pages(span.row, column, [0])
    backend = WindowAttention(world.pool, world.num_heads, window, scale=0.7)
    backend.prepare(batch)
    first = [origin + 1 - window for origin in origins]
    limits = [limit for span in spans for limit in span.limits]
    for layer in range(NUM_LAYERS):
        q = world.draw(len(limits), world.num_heads, world.head_dim)
        k, v = (world.draw(len(limits), world.num_kv_heads, world.head_dim) for _ in range(2))
        found = backend.forward(q, k, v, layer)
        for span, (at, end) in zip(spans, pairwise(batch.span_offsets), strict=True):
            keys, values = world.keys[layer, span.row], world.values[layer, span.row]
            keys[span.start : span.start + span.length] = k[at:end]
            values[span.start : span.start + span.length] = v[at:end]
            expected = windowed(q[at:end], keys, values, limits[at:end], first[at:end], 0.7)
            torch.testing.assert_close(found[at:end], expected, rtol=1e-12, atol=1e-12)


def test_origins_are_needed() -> None:
    world = PagedSequences()
    with pytest.raises(ValueError, match="origins"):
        WindowAttention(world.pool, world.num_heads, 4).prepare(world.pack([SpanOf(0, 0, 3)]))


def test_each_layer_has_its_own_backend_and_pool() -> None:
    """A full layer's K and V in a sliding layer's pool would be another layer's text."""
    worlds = [PagedSequences(seed=seed, num_kv_heads=heads) for seed, heads in ((0, 2), (1, 3))]
    layered = LayeredAttention([world.backend() for world in worlds], {0: (0, 0), 1: (1, 0), 2: (0, 1)})
    spans = [SpanOf(0, 0, 5)]
    batches = [world.pack(spans) for world in worlds]
    layered.prepare(batches[0])
    for layer, (which, own) in {0: (0, 0), 2: (0, 1)}.items():
        world = worlds[which]
        q, k, v = (world.draw(5, heads, world.head_dim) for heads in (world.num_heads, *[world.num_kv_heads] * 2))
        expected = world.dense(batches[which], q, k, v, own)
        torch.testing.assert_close(layered.forward(q, k, v, layer), expected, rtol=1e-12, atol=1e-12)
    assert (worlds[1].pool.k[:, worlds[1].page_size :] == worlds[1].pool.k[0, -1, 0, 0]).all(), "nobody wrote there"
