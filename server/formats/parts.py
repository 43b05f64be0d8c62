"""The parts that an answer is made of, and the parser that cuts generated text into them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol


class AnswerText(NamedTuple):
    """Visible text."""

    text: str


class Thought(NamedTuple):
    """Text of the model's reasoning, before its answer."""

    text: str


class ToolCallStart(NamedTuple):
    """A call of a tool begins."""

    number: int
    """Of the call within the answer, from 0."""
    id: str
    name: str


class ToolCallArguments(NamedTuple):
    """More of the arguments of a call, whose pieces add up to the text of a JSON object."""

    number: int
    text: str


Part = AnswerText | Thought | ToolCallStart | ToolCallArguments
"""A piece of an answer. Pieces of one kind that follow each other are one piece, cut anywhere."""


class OutputParser(Protocol):
    """Cuts the generated text of one choice into parts, as it forms."""

    @property
    def is_thinking(self) -> bool:
        """The text so far ends within the model's reasoning."""

    def feed(self, text: str) -> list[Part]:
        """The parts that further text makes certain. Text never comes back in another part later."""

    def flush(self) -> list[Part]:
        """The parts that are left at the end of the answer."""


class PlainText:
    """The parser of answers that are text and nothing else."""

    is_thinking = False

    def feed(self, text: str) -> list[Part]:
        """The text as it is."""
        return [AnswerText(text)] if text else []

    def flush(self) -> list[Part]:
        """Nothing is ever held back."""
        return []


def text_of(parts: Iterable[Part]) -> str:
    """The visible text of some parts."""
    return "".join([part.text for part in parts if isinstance(part, AnswerText)])


def thought_of(parts: Iterable[Part]) -> str:
    """The reasoning among some parts."""
    return "".join([part.text for part in parts if isinstance(part, Thought)])
