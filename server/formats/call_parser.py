"""The parser that finds calls of tools in generated text, whatever format they are in."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from server.formats.parts import AnswerText, Part, ToolCallArguments, ToolCallStart
from server.formats.source import SPACE, Begun, Grown, Malformed, Reading, Source, beginning_at_end
from server.formats.tool_format import ToolFormat
from server.formats.tools import CalledTool, Tool


class CallParser:
    """Text and calls of tools, in the order in which they come.

    A call is told when it is whole and names a tool of the request. Anything else that looks like one is text, as it
    was written. White space between text and a call, and between calls, is left out.

    Where a grammar holds the calls, a call can be told as it comes: once it has begun as the grammar has it begin, it
    can only become whole, unless the answer is cut off.
    """

    is_thinking = False

    def __init__(
        self,
        form: ToolFormat,
        tools: Mapping[str, Tool],
        new_id: Callable[[], str],
        most: int | None = None,
        *,
        as_it_comes: bool = False,
    ) -> None:
        """most: calls that are told, if there is a limit; any others are text. as_it_comes: a grammar holds them."""
        self._form, self._tools, self._new_id, self._most = form, tools, new_id, most
        self._as_it_comes = as_it_comes
        self._pending = ""  # text that is not told yet, while no call is being read
        self._source: Source | None = None  # of the call that is being read
        self._reading: Reading[list[CalledTool]] | None = None
        self._tells = False  # the call is told while it is being read
        self._has_told = False  # some of it has been
        self._count = 0  # calls told
        self._begun = False  # text that is no white space has been told, or a call
        self._after_call = False  # nothing but white space has come since a call

    def feed(self, text: str) -> list[Part]:
        """See OutputParser."""
        if self._source is None:
            self._pending += text
        else:
            self._source.text += text
        return self._advance(ended=False)

    def flush(self) -> list[Part]:
        """See OutputParser."""
        parts = self._advance(ended=True)
        text, self._pending = self._pending, ""
        return parts + self._text(text)

    # -- inside -------------------------------------------------------------------------------------------------

    def _advance(self, *, ended: bool) -> list[Part]:
        parts: list[Part] = []
        while True:
            if self._source is None:
                parts += self._until_call()
            if self._source is None or self._reading is None:
                return _joined(parts)
            self._source.ended = ended
            parts += self._read_on(self._source, self._reading)
            if self._reading is not None:
                return _joined(parts)

    def _until_call(self) -> list[Part]:
        """The text before the next call, which is then being read; or as much as cannot belong to one."""
        pending = self._pending
        found = [at for opening in self._form.openings if (at := pending.find(opening)) >= 0]
        start = min(found, default=-1)
        if start >= 0 and not (self._form.only_first and (self._begun or pending[:start].strip(SPACE))):
            before = pending[:start].rstrip(SPACE)
            self._source = Source(pending[start:])
            self._reading = self._form.read(self._source, self._tools)
            self._pending = pending[len(before) : start]  # told if this is no call
            self._tells = self._as_it_comes and pending.startswith(self._form.openings[0], start)
            self._has_told = False
            return self._text(before)
        safe = self._safe_length(pending)
        self._pending = pending[safe:]
        return self._text(pending[:safe])

    def _safe_length(self, text: str) -> int:
        """Characters that no call and no white space before one can begin in."""
        openings = self._form.openings
        if self._form.only_first:
            first = text.lstrip(SPACE)
            may_begin = not self._begun and any(opening.startswith(first) for opening in openings)
            return 0 if may_begin else len(text)
        return len(text[: len(text) - max(beginning_at_end(text, opening) for opening in openings)].rstrip(SPACE))

    def _read_on(self, source: Source, reading: Reading[list[CalledTool]]) -> list[Part]:
        """What can be told of the call; at its end it is no longer being read."""
        parts: list[Part] = []
        try:
            while (told := next(reading)) is not None:
                parts += self._grown(told) if self._tells else []
            return parts
        except StopIteration as stop:
            calls: list[CalledTool] = stop.value
        except Malformed:
            calls = []
        space, self._pending = self._pending, source.rest
        self._source = self._reading = None
        if self._has_told:
            if not calls and source.ended:
                self._pending = ""  # what is left of a call that was cut off is no text
            return parts
        within = self._most is None or self._count + len(calls) <= self._most
        if calls and within and all(call.name in self._tools for call in calls):
            return self._told(calls)
        return self._text(space + source.text[: max(source.at, 1)])

    def _grown(self, told: Begun | Grown) -> list[Part]:
        """What a reader tells of the call that it reads. After a call that may not be told nothing is."""
        if isinstance(told, Grown):
            return [ToolCallArguments(self._count - 1, told.text)] if told.text and self._has_told else []
        self._tells = told.name in self._tools and (self._most is None or self._count < self._most)
        if not self._tells:
            return []
        self._has_told = self._begun = self._after_call = True
        self._count += 1
        return [ToolCallStart(self._count - 1, self._new_id(), told.name)]

    def _told(self, calls: list[CalledTool]) -> list[Part]:
        parts: list[Part] = []
        for call in calls:
            parts.append(ToolCallStart(self._count, self._new_id(), call.name))
            parts.append(ToolCallArguments(self._count, call.arguments))
            self._count += 1
        self._begun = self._after_call = True
        return parts

    def _text(self, text: str) -> list[Part]:
        if self._after_call:
            text = text.lstrip(SPACE)
        if not text:
            return []
        self._begun = self._begun or bool(text.strip(SPACE))
        self._after_call = False
        return [AnswerText(text)]


def _joined(parts: list[Part]) -> list[Part]:
    """The parts, with the arguments of a call that follow each other in one."""
    joined: list[Part] = []
    for part in parts:
        last = joined[-1] if joined else None
        if isinstance(part, ToolCallArguments) and isinstance(last, ToolCallArguments) and part.number == last.number:
            joined[-1] = ToolCallArguments(part.number, last.text + part.text)
        else:
            joined.append(part)
    return joined
