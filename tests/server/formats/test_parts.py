"""The parts of an answer. If they fail, text is lost, doubled, or shown in the wrong place."""

from __future__ import annotations

from server.formats.parts import AnswerText, PlainText, text_of


def test_plain_text_passes_unchanged_and_at_once() -> None:
    parser = PlainText()
    parts = [part for text in ("Once", "", " upon") for part in parser.feed(text)] + parser.flush()
    assert parts == [AnswerText("Once"), AnswerText(" upon")]
    assert text_of(parts) == "Once upon"


def test_no_parts_are_no_text() -> None:
    assert text_of([]) == ""
