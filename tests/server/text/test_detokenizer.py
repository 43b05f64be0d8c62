"""Text as it comes: whole characters, and stop strings however the text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.text.detokenizer import IncrementalDecoder, StopFinder
from tests.fakes import builtin_tokenizer

TOKENIZER = builtin_tokenizer()


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=40))
@settings(max_examples=200, deadline=None)
def test_the_pieces_put_together_are_the_text(text: str) -> None:
    """Otherwise a stream and an answer would differ."""
    decoder = IncrementalDecoder(TOKENIZER)
    pieces = [decoder.step(token) for token in TOKENIZER.encode_text(text)]
    assert "".join(pieces) + decoder.flush() == text
    assert all("\ufffd" not in piece for piece in pieces)


def test_an_answer_cut_inside_a_character_ends_before_it() -> None:
    """Half a character is not text; clients show it as garbage."""
    decoder = IncrementalDecoder(TOKENIZER)
    ids = TOKENIZER.encode_text("ab😀")
    assert "".join(decoder.step(token) for token in ids[:-1]) + decoder.flush() == "ab"


def test_control_tokens_have_no_text() -> None:
    decoder = IncrementalDecoder(TOKENIZER)
    assert [decoder.step(token) for token in [*TOKENIZER.encode_text("a"), 4, 2, *TOKENIZER.encode_text("b")]] == [
        "a", "", "", "b",
    ]  # fmt: skip


def test_bytes_that_never_become_a_character_do_not_hold_the_stream_up() -> None:
    """A model that stutters half characters must not make the stream wait for its end, nor cost ever more a token."""
    half = TOKENIZER.encode_text("😀")[0]
    decoder = IncrementalDecoder(TOKENIZER)
    pieces = [decoder.step(half) for _ in range(100)]
    assert sum(len(piece) for piece in pieces) > 60
    assert decoder.step(TOKENIZER.encode_text("a")[0]).endswith("a")


def run(stops: tuple[str, ...], pieces: list[str]) -> tuple[str, bool]:
    finder = StopFinder(stops)
    shown = ""
    for piece in pieces:
        safe, hit = finder.feed(piece)
        shown += safe
        if hit:
            return shown, True
    return shown + finder.flush(), False


def first_completed(stops: tuple[str, ...], text: str) -> tuple[str, bool]:
    """The definition, letter by letter."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


@given(
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=4).map(tuple),
    st.lists(st.text("abc", max_size=5), max_size=8),
)
@settings(max_examples=500, deadline=None)
def test_a_stop_string_is_found_however_the_text_is_cut(stops: tuple[str, ...], pieces: list[str]) -> None:
    """The same answer must end at the same place, streamed or not, in blocks of any length."""
    assert run(stops, pieces) == first_completed(stops, "".join(pieces))


@given(st.lists(st.text("ab", max_size=3), max_size=8))
def test_nothing_is_shown_that_a_stop_string_takes_away(pieces: list[str]) -> None:
    finder, shown = StopFinder(("abab",)), ""
    for piece in pieces:
        safe, hit = finder.feed(piece)
        shown += safe
        if hit:
            break
    assert "abab" not in shown
    assert "".join(pieces).startswith(shown)


def test_only_what_could_become_a_stop_string_is_held_back() -> None:
    finder = StopFinder(("\n\nUser:",))
    assert finder.feed("Hello\n\nUs") == ("Hello", None)
    assert finder.feed("ually") == ("\n\nUsually", None)


@pytest.mark.parametrize("stops", [(), ("z",)])
def test_text_without_stops_passes_at_once(stops: tuple[str, ...]) -> None:
    assert StopFinder(stops).feed("abc") == ("abc", None)


def test_a_stop_string_counts_once_it_may() -> None:
    """`min_tokens`: one that is completed before is text, one that only begins before ends the answer."""
    finder = StopFinder(("ab",))
    assert finder.feed("ab a", active=False) == ("ab ", None)
    assert finder.feed("b.") == ("", "ab")


def test_a_stop_string_can_be_part_of_the_text() -> None:
    assert StopFinder(("END",), include=True).feed("the END.") == ("the END", "END")
