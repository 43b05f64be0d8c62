"""Following an answer through a known text: where it stands, what comes next, and how sure that is.

None of it can change an answer. If one fails, the edit of a file costs a pass a token again, or every answer pays for
drafts that never fit.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.decoding.acceptance import AcceptanceEstimate
from engine.decoding.costs import CostTable
from engine.decoding.lookup import TextLookup, as_text, expected_tokens, read_on
from engine.decoding.width import WidthController
from engine.request import Request
from engine.sequence import KnownText, Sequence

FILE = [*range(100, 160)]
DEAR = CostTable((1, 64), (1, 64), ((1.0, 64.0), (64.0, 4096.0)))
"""A pass costs as much as its tokens: nothing is worth a draft that is not certain."""
CHEAP = CostTable((1, 64), (1, 64), ((1.0, 1.0), (1.0, 1.0)))
"""A pass costs the same whatever it holds."""


def asked(prompt: list[int], prediction: list[int] | None = None, max_tokens: int = 500) -> Sequence:
    request = Request(request_id="r", prompt_token_ids=prompt, max_tokens=max_tokens, prediction_token_ids=prediction)
    return Sequence(request, frozenset(), 0)


def lookup_over(costs: CostTable, most: int = 64) -> TextLookup:
    return TextLookup(WidthController(costs, AcceptanceEstimate(most)), most)


def next_tokens(seq: Sequence, count: int = 4) -> list[int] | None:
    """What the first known text says next, once the sequence's tokens were read."""
    known = seq.known_texts[0]
    read_on(known, seq)
    return None if known.place is None else [ord(token) for token in known.text[known.place :][:count]]


def rounds(seq: Sequence, answer: list[int], lookup: TextLookup) -> tuple[int, int, int]:
    """Decodes `answer` as a model that wants to say it would. Returns passes, drafts and accepted drafts."""
    seq.token_ids.append(answer[0])
    passes = drafted = accepted = 0
    while seq.num_generated < len(answer):
        span = lookup.span(seq, 1, lambda: lookup.controller.plain_rate(seq, 1))
        rest, drafts = answer[seq.num_generated :], [] if span is None else span.token_ids[1:]
        assert span is None or (span.start, span.token_ids[0]) == (len(seq.token_ids) - 1, seq.token_ids[-1])
        same = next((i for i, (a, b) in enumerate(zip(drafts, rest, strict=False)) if a != b), len(drafts))
        same = min(same, len(rest) - 1)
        seq.token_ids += rest[: same + 1]
        passes, drafted, accepted = passes + 1, drafted + len(drafts), accepted + same
    return passes, drafted, accepted


def test_a_prediction_is_followed_from_its_beginning() -> None:
    seq = asked([1, 2], FILE)
    lookup_over(CHEAP).begin(seq)
    seq.token_ids += FILE[:3]
    assert next_tokens(seq) == FILE[3:7]


@pytest.mark.parametrize(
    ("edited", "joins_at"),
    [
        ([*FILE[:20], 7, *FILE[21:24]], 24),  # one token replaced
        ([*FILE[:20], 7, 8, 9, *FILE[20:22]], 22),  # three put in
        ([*FILE[:20], *FILE[30:32]], 32),  # ten left out
        ([7, 8, 9, *FILE[:2]], 2),  # something said before
        ([*FILE[:20], 7, *FILE[45:48], 8, *FILE[3:7]], 7),  # parts in another order
    ],
)
def test_an_answer_that_left_its_prediction_is_found_again(edited: list[int], joins_at: int) -> None:
    """One token at a time, as plain decoding would bring them."""
    seq = asked([1, 2], FILE)
    lookup_over(CHEAP).begin(seq)
    for token in edited:
        seq.token_ids.append(token)
        next_tokens(seq)
    assert next_tokens(seq) == FILE[joins_at : joins_at + 4]


def test_after_a_replaced_token_the_next_one_is_foretold_at_once() -> None:
    """Renaming a name costs one verification each time, not three."""
    seq = asked([1, 2], FILE)
    lookup_over(CHEAP).begin(seq)
    seq.token_ids += [*FILE[:20], 7]
    assert next_tokens(seq, 2) == FILE[21:23]
    assert seq.known_texts[0].matched == 0, "it is a guess, and known to be one"


def test_a_prompt_is_followed_where_the_answer_repeats_it_and_not_at_its_own_end() -> None:
    seq = asked([*FILE, 7, 8, 9])
    lookup_over(CHEAP).begin(seq, prompt=True)
    seq.token_ids.append(5)
    assert next_tokens(seq) is None
    seq.token_ids += FILE[10:12]
    assert next_tokens(seq) == FILE[12:16]
    seq.token_ids += [*FILE[12:15], 3]
    assert next_tokens(seq) is None, "a prompt is no guess at the answer"


def test_a_text_that_ends_is_followed_again_where_it_is_repeated() -> None:
    seq = asked([1], FILE[:8])
    lookup_over(CHEAP).begin(seq)
    seq.token_ids += FILE[:8]
    assert next_tokens(seq) == []
    seq.token_ids.append(3)
    assert next_tokens(seq) is None
    seq.token_ids += FILE[:3]
    assert next_tokens(seq) == FILE[3:7]


def test_an_edit_takes_few_passes_where_passes_cost_the_same() -> None:
    """300 tokens with six edits: some 15 passes, where plain decoding takes 299."""
    file = [i * 37 % 1000 + 10 for i in range(300)]
    edited = list(file)
    for i, at in enumerate(range(30, 300, 50)):
        edited[at : at + i % 3] = [1005 + i] * ((i + 1) % 3)
    passes, drafted, accepted = rounds(asked([1], file), edited, lookup_over(CHEAP))
    assert passes == len(edited) - 1, "nothing was begun: a text that is not known is not followed"
    seq, lookup = asked([1], file), lookup_over(CHEAP)
    lookup.begin(seq)
    passes, drafted, accepted = rounds(seq, edited, lookup)
    assert passes <= 24
    assert accepted > 0.9 * (len(edited) - passes)
    assert drafted < 3 * len(edited), "what cannot be right any more is not verified for long"


def test_a_prediction_of_something_else_is_soon_left_alone() -> None:
    """Drafts that are never right cost time on a machine where passes cost by the token."""
    seq, lookup = asked([1], FILE * 5), lookup_over(CostTable((1, 64), (1, 2), ((16.0, 17.0), (79.0, 142.0))))
    lookup.begin(seq)
    passes, drafted, accepted = rounds(seq, [i * 7 % 50 for i in range(300)], lookup)
    assert (passes, accepted) == (299, 0)
    assert drafted <= 20


def test_where_tokens_cost_what_passes_do_nothing_is_drafted() -> None:
    seq, lookup = asked([1], FILE), lookup_over(DEAR)
    lookup.begin(seq)
    assert rounds(seq, FILE, lookup) == (len(FILE) - 1, 0, 0)


def test_what_was_foretold_counts_whether_or_not_it_was_drafted() -> None:
    """Otherwise only passes that may be wasted could tell whether drafts are worth them."""
    seq, lookup = asked([*FILE, 9]), lookup_over(DEAR)
    lookup.begin(seq, prompt=True)
    known = seq.known_texts[0]
    before = expected_tokens(known, 4)
    assert rounds(seq, [*FILE[:3], 5] * 30, lookup)[1] == 0
    assert sum(known.tries) > 30
    known.matched = 2
    assert known.hits[2] / known.tries[2] < 0.6
    assert before[0] == 1.0


def test_expectations_are_those_of_the_rates() -> None:
    known = KnownText("abc" * 40, predicted=True, place=0, matched=8)
    known.tries[4], known.hits[4] = 10_000.0, 5_000.0
    assert expected_tokens(known, 4) == pytest.approx([1, 1.5, 1.75, 1.875], abs=1e-3)


def test_a_verification_stays_within_the_answer_and_the_longest_block() -> None:
    for max_tokens, most, wanted in ((500, 64, 60), (500, 16, 16), (9, 64, 8), (2, 64, None)):
        seq, lookup = asked([1], FILE, max_tokens), lookup_over(CHEAP, most)
        lookup.begin(seq)
        seq.token_ids.append(FILE[0])
        span = lookup.span(seq, 1, lambda: 1.0)
        assert (None if span is None else len(span.token_ids)) == wanted


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(
    st.lists(st.integers(0, 4), max_size=40),
    st.lists(st.integers(0, 4), min_size=1, max_size=40),
    st.lists(st.integers(0, 4), min_size=1, max_size=60),
    st.integers(1, 5),
)
def test_any_texts_can_be_followed(prediction: list[int], prompt: list[int], answer: list[int], step: int) -> None:
    """A text of few tokens repeats itself in every way; a place outside it would end a user's request."""
    seq, lookup = asked(prompt, prediction), lookup_over(CHEAP)
    lookup.begin(seq, prompt=True)
    assert [known.text for known in seq.known_texts] == [as_text(text) for text in (prediction, prompt) if text]
    for at in range(0, len(answer), step):
        seq.token_ids += answer[at : at + step]
        for _ in range(2):  # a plan may be made again before its pass is run
            span = lookup.span(seq, 1, lambda: 0.0)
            places = [(known.place, known.matched, list(known.tries)) for known in seq.known_texts]
            assert span is None or 2 <= len(span.token_ids) <= 64
        again = lookup.span(seq, 1, lambda: 0.0)
        assert places == [(known.place, known.matched, list(known.tries)) for known in seq.known_texts]
        assert (None if again is None else again.token_ids) == (None if span is None else span.token_ids)
        for known in seq.known_texts:
            assert known.place is None or 0 <= known.place <= len(known.text)
            if known.place is not None and known.matched:
                said = seq.token_ids[-known.matched :]
                assert known.text[known.place - known.matched : known.place] == as_text(said)
