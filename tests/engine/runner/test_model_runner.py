"""Packing a plan into arrays. If one fails, a token is encoded at another place or sees other keys than was planned."""

from __future__ import annotations

from engine.batch import CAUSAL, BatchPlan, KVLimits, Phase, Span, StepGroup
from engine.sequence import Sequence
from tests.conftest import MakeEngine


def test_every_token_gets_its_own_limit_and_position(tiny_engine: MakeEngine) -> None:
    """Causal, bidirectional and block by block side by side, and each of them alone."""
    runner = tiny_engine().runner
    shapes = [(0, 7, CAUSAL), (9, 6, KVLimits.up_to(15)), (4, 11, KVLimits.block_ends(4)),
              (5, 9, KVLimits.block_ends(6, origin=5))]  # fmt: skip
    spans = [
        Span(Sequence.placeholder(row, [4 * row + i for i in range(4)]), Phase.PREFILL, start, [7] * size, limits, 0)
        for row, (start, size, limits) in enumerate(shapes)
    ]
    for chosen in (spans, spans[:2], *([span] for span in spans)):
        packed = runner.packer.pack(BatchPlan([StepGroup("", Phase.PREFILL, 0, chosen)]))
        places = [(span, position) for span in chosen for position in range(span.start, span.end)]
        assert packed.inputs[1].tolist() == [position for _, position in places]
        assert packed.inputs[2].tolist() == [span.limits.at(position) for span, position in places]
        assert packed.span_kv_ends == [max(span.limits.at(p) for p in range(span.start, span.end)) for span in chosen]
