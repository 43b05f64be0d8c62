"""Tools, parsers that number their calls, and answers cut into pieces, for the tests of formats."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from server.formats.call_parser import CallParser
from server.formats.parts import AnswerText, OutputParser, Part, Thought, ToolCallArguments
from server.formats.registry import FORMATS
from server.formats.tools import Tool

PROPERTIES = {"a": {"type": "integer"}, "s": {"type": "string"}, "any": {}}
SCHEMA = {"type": "object", "properties": PROPERTIES}
TOOLS = {name: Tool(name, SCHEMA, is_held=name != "loose") for name in ("f", "g", "loose")}


def parser(name: str, most: int | None = None, *, as_it_comes: bool = False) -> CallParser:
    """The parser of a format; its calls are called "id0", "id1" and so on."""
    numbers = itertools.count()
    return CallParser(FORMATS[name](), TOOLS, lambda: f"id{next(numbers)}", most, as_it_comes=as_it_comes)


def parts_of(made: OutputParser, pieces: Iterable[str]) -> list[Part]:
    """What a parser makes of an answer in pieces; parts of one kind that follow each other are one part."""
    found: list[Part] = []
    for part in [*(part for piece in pieces for part in made.feed(piece)), *made.flush()]:
        last = found[-1] if found else None
        if isinstance(last, AnswerText) and isinstance(part, AnswerText):
            found[-1] = AnswerText(last.text + part.text)
        elif isinstance(last, Thought) and isinstance(part, Thought):
            found[-1] = Thought(last.text + part.text)
        elif isinstance(last, ToolCallArguments) and isinstance(part, ToolCallArguments):
            assert last.number == part.number
            found[-1] = ToolCallArguments(part.number, last.text + part.text)
        else:
            found.append(part)
    return found


def cut(text: str, widths: list[int]) -> list[str]:
    """The text in pieces of these lengths, and the rest."""
    ends = list(itertools.accumulate(widths))
    return [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]
