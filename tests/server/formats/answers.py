"""Tools, parsers that number their calls, and answers cut into pieces, for the tests of formats."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from server.formats.call_parser import CallParser
from server.formats.parts import AnswerText, OutputParser, Part, Thought
from server.formats.registry import FORMATS
from server.formats.tools import Tool

PROPERTIES = {"a": {"type": "integer"}, "s": {"type": "string"}, "any": {}}
TOOLS = {name: Tool(name, {"type": "object", "properties": PROPERTIES}) for name in ("f", "g")}


def parser(name: str, most: int | None = None) -> CallParser:
    """The parser of a format; its calls are called "id0", "id1" and so on."""
    numbers = itertools.count()
    return CallParser(FORMATS[name](), TOOLS, lambda: f"id{next(numbers)}", most)


def parts_of(made: OutputParser, pieces: Iterable[str]) -> list[Part]:
    """What a parser makes of an answer in pieces; text and thoughts that follow each other are one part."""
    found: list[Part] = []
    for part in [*(part for piece in pieces for part in made.feed(piece)), *made.flush()]:
        last = found[-1] if found else None
        if isinstance(last, AnswerText) and isinstance(part, AnswerText):
            found[-1] = AnswerText(last.text + part.text)
        elif isinstance(last, Thought) and isinstance(part, Thought):
            found[-1] = Thought(last.text + part.text)
        else:
            found.append(part)
    return found


def cut(text: str, widths: list[int]) -> list[str]:
    """The text in pieces of these lengths, and the rest."""
    ends = list(itertools.accumulate(widths))
    return [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]
