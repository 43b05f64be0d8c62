"""Limits of what a token sees. If one fails, a token reads the future, or misses what it should have read."""

from __future__ import annotations

import numpy as np
import pytest

from engine.batch import CAUSAL, KVLimits, Phase, Span, block_ends
from engine.sequence import Sequence


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (CAUSAL, [4, 5, 6, 7, 8, 9]),
        (KVLimits.up_to(12), [12] * 6),
        (KVLimits.block_ends(4), [4, 8, 8, 8, 8, 12]),
        (KVLimits.block_ends(3, origin=2), [5, 5, 8, 8, 8, 11]),
    ],
)
def test_what_the_tokens_of_a_span_see(limits: KVLimits, expected: list[int]) -> None:
    """The tokens at positions 3 to 8; the pages of the span must cover the most that any of them sees."""
    assert [limits.at(position) for position in range(3, 9)] == expected
    span = Span(Sequence.placeholder(0, [0]), Phase.PREFILL, 3, [0] * 6, limits, num_logits=0)
    assert span.kv_end == max(expected)


def test_block_ends_of_several_spans_are_those_of_each_token() -> None:
    seq = Sequence.placeholder(0, [0])
    shapes = [(5, 7, CAUSAL), (0, 9, KVLimits.block_ends(4)), (6, 1, KVLimits.block_ends(5, origin=1))]
    spans = [Span(seq, Phase.PREFILL, start, [0] * size, limits, num_logits=0) for start, size, limits in shapes]
    positions = np.concatenate([np.arange(span.start, span.end) for span in spans])
    expected = [span.limits.at(position) for span in spans for position in range(span.start, span.end)]
    assert block_ends(spans, [len(span.token_ids) for span in spans], positions).tolist() == expected
