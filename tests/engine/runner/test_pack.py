"""Plans as plain arrays. If one fails, tokens are computed at the wrong place, or in pages that are not theirs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.attention.packed_pass import MappedPages
from engine.batch import CAUSAL, BatchPlan, KVLimits, Phase, Span, StepGroup
from engine.engine import Engine
from engine.runner.pack import Packer
from engine.sequence import Sequence
from tests.conftest import MakeEngine

PAGE_SIZE = 4


@pytest.fixture
def engine(tiny_engine: MakeEngine) -> Engine:
    return tiny_engine()


def packer(has_adapter: bool = True) -> Packer:
    return Packer(PAGE_SIZE, (4, 8), has_adapter)


def sequence(row: int, pages: list[int]) -> Sequence:
    return Sequence.placeholder(row, pages)


def plan_of(*spans: Span) -> BatchPlan:
    return BatchPlan([StepGroup("", span.phase, span.num_logits, [span]) for span in spans])


def test_tokens_positions_limits_slots_and_logit_rows() -> None:
    """A causal span across a page's end with its last logit, and a block of a later row that sees itself whole."""
    first, second = sequence(1, [5, 3]), sequence(3, [6, 2])
    packed = packer().pack(
        plan_of(
            Span(first, Phase.PREFILL, 2, [11, 12, 13], limits=CAUSAL, num_logits=1, logit_start=2),
            Span(second, Phase.DRAFT, 5, [21, 22], limits=KVLimits.up_to(7), num_logits=2),
        )
    )
    ids, positions, limits, slots = packed.inputs.tolist()
    assert ids == [11, 12, 13, 21, 22]
    assert positions == [2, 3, 4, 5, 6]
    assert limits == [3, 4, 5, 7, 7]
    assert slots == [5 * 4 + 2, 5 * 4 + 3, 3 * 4, 2 * 4 + 1, 2 * 4 + 2]
    assert packed.logit_rows.tolist() == [2, 3, 4]
    assert (packed.span_offsets, packed.span_rows, packed.span_kv_ends) == ([0, 3, 5], [1, 3], [5, 7])
    assert packed.drafting is not None
    assert packed.drafting.tolist() == [False] * 3 + [True] * 2


def test_only_drafts_of_a_model_with_an_adapter_are_marked() -> None:
    """Every pass would pay for a second transfer."""
    draft = Span(sequence(0, [0]), Phase.DRAFT, 0, [1], limits=KVLimits.up_to(1), num_logits=1)
    decode = Span(sequence(0, [0]), Phase.DECODE, 0, [1], limits=CAUSAL, num_logits=1)
    assert packer(has_adapter=False).pack(plan_of(draft)).drafting is None
    assert packer().pack(plan_of(decode)).drafting is None


def test_a_pass_says_whether_it_only_drafts() -> None:
    """Narrower weights would verify."""
    draft = Span(sequence(0, [0]), Phase.DRAFT, 0, [1], limits=KVLimits.up_to(1), num_logits=1)
    verify = Span(sequence(1, [0]), Phase.VERIFY, 0, [1], limits=CAUSAL, num_logits=1)
    assert packer().pack(plan_of(draft)).only_drafts
    assert not packer().pack(plan_of(verify)).only_drafts
    assert not packer().pack(plan_of(draft, verify)).only_drafts


def test_each_page_is_mapped_once_and_cleared_pages_go_with_the_next_pass() -> None:
    made, seq = packer(), sequence(2, [4, 1])
    span = Span(seq, Phase.DECODE, 3, [9], limits=CAUSAL, num_logits=1)
    made.clear([7])
    made.clear([0, 3])
    packed = made.pack(plan_of(span))
    assert packed.mapped_pages == [MappedPages(2, 0, [4, 1])]
    assert packed.cleared_pages == [7, 0, 3]
    seq.pages.append(6)
    packed = made.pack(plan_of(span))
    assert (packed.mapped_pages, packed.cleared_pages) == ([MappedPages(2, 2, [6])], [])
    packed = made.pack(plan_of(span))
    assert (packed.mapped_pages, packed.cleared_pages) == ([], [])


def test_what_a_plan_that_cannot_be_packed_has_changed_goes_with_the_next_one() -> None:
    """Its sequences are run again alone: on the device their pages would be somebody else's."""
    made, seq = packer(), sequence(2, [4])
    made.clear([5])
    bad = Span(seq, Phase.DECODE, 0, ["no token"], limits=CAUSAL, num_logits=1)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="no token"):
        made.pack(plan_of(bad))
    packed = made.pack(plan_of(Span(seq, Phase.DECODE, 0, [1], limits=CAUSAL, num_logits=1)))
    assert packed.mapped_pages == [MappedPages(2, 0, [4])]
    assert packed.cleared_pages == [5]


def test_everything_packed_is_plain_data() -> None:
    """A rank in another process gets it by a message: no tensor, no sequence."""
    seq = sequence(0, [0])
    made = Packer(PAGE_SIZE, (4, 8), True, canvas_length=1)
    packed = made.pack(plan_of(Span(seq, Phase.DRAFT, 0, [1], limits=KVLimits.up_to(1), num_logits=1)))
    assert packed.canvases is not None
    for name in packed.__slots__:
        value = getattr(packed, name)
        assert isinstance(value, np.ndarray | list | bool) or name == "canvases", name
        assert name != "canvases" or all(isinstance(array, np.ndarray) for array in value)
        assert not isinstance(value, torch.Tensor), name
        assert not isinstance(value, list) or all(type(entry) in (int, MappedPages) for entry in value), name


def test_canvases_know_their_places_and_origins() -> None:
    """What the last step of a canvas made of it is found by its row; windows are counted from its first position."""
    text, fresh, told = sequence(0, [1]), sequence(1, [2, 3]), sequence(2, [4, 5])
    limits = KVLimits.up_to(6)
    packed = Packer(PAGE_SIZE, (4, 8), False, canvas_length=3).pack(
        plan_of(
            Span(text, Phase.PREFILL, 0, [11, 12], limits=CAUSAL, num_logits=0),
            Span(fresh, Phase.DENOISE, 3, [21, 22, 23], limits=limits, num_logits=3, step=0),
            Span(told, Phase.DENOISE, 3, [31, 32, 33], limits=limits, num_logits=3, step=5),
        )
    )
    assert packed.canvases is not None
    assert packed.canvases.rows.tolist() == [2, 3, 4, 5, 6, 7]
    first = 1 + 3 * (2 * 2 + 1)  # after place 0: row 2, odd step
    assert packed.canvases.places.tolist() == [0, 0, 0, first, first + 1, first + 2]
    assert packed.canvases.origins.tolist() == [0, 1, 3, 3, 3, 3, 3, 3]
    assert packer().pack(plan_of(Span(text, Phase.PREFILL, 0, [11], limits=CAUSAL, num_logits=0))).canvases is None
