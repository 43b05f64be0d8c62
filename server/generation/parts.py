"""The parts that an answer is made of, and the parser that cuts generated text into them."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class AnswerText(NamedTuple):
    """Visible text."""

    text: str


Part = AnswerText
"""A piece of an answer. Today every answer is plain text."""


class OutputParser(Protocol):
    """Cuts the generated text of one choice into parts, as it forms."""

    def feed(self, text: str) -> list[Part]:
        """The parts that further text makes certain. Text never comes back in another part later."""

    def flush(self) -> list[Part]:
        """The parts that are left at the end of the answer."""


class PlainText:
    """The parser of answers that are text and nothing else."""

    def feed(self, text: str) -> list[Part]:
        """The text as it is."""
        return [AnswerText(text)] if text else []

    def flush(self) -> list[Part]:
        """Nothing is ever held back."""
        return []


def text_of(parts: list[Part]) -> str:
    """The visible text of some parts."""
    return parts[0].text if len(parts) == 1 else "".join(part.text for part in parts)
