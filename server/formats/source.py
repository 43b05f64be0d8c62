"""Generated text as a parser reads it: piece by piece, waiting for more wherever a piece happens to end.

The readers below are generators. They yield None where they need more text, and return what they have read. A reader
is written as if the whole text were there, so it cannot matter where the text was cut. One that reads a call tells of
it, perhaps before its end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping
from typing import NamedTuple, TypeVar


class Begun(NamedTuple):
    """A call has begun: the tool is known, and arguments follow."""

    name: str


class Grown(NamedTuple):
    """More of the arguments of the call that has begun, as JSON."""

    text: str


T = TypeVar("T")
Reading = Generator[Begun | Grown | None, None, T]

SPACE = " \t\r\n"
_NUMBER_OR_WORD = re.compile(r"[-+.0-9A-Za-z]")
_PLAIN = re.compile(r'[^"\\]*')
MAX_DEPTH = 128
"""Deepest nesting of a value that is read."""


def beginning_at_end(text: str, literal: str) -> int:
    """Characters at the end of a text that may begin a literal; the literal itself is not in the text."""
    longest = min(len(literal) - 1, len(text))
    return next((size for size in range(longest, 0, -1) if text.endswith(literal[:size])), 0)


class Malformed(Exception):
    """The text is not what its format wants."""


class Source:
    """Text that grows, and how far it has been read."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.ended = False
        """No more text will come."""

    @property
    def rest(self) -> str:
        """What has not been read."""
        return self.text[self.at :]

    def peek(self) -> Reading[str]:
        """The next character; empty at the end of all text. It is not read."""
        while self.at >= len(self.text):
            if self.ended:
                return ""
            yield None
        return self.text[self.at]

    def skip_space(self) -> Reading[None]:
        """Reads white space, if there is any."""
        while (char := (yield from self.peek())) and char in SPACE:
            self.at += 1

    def comes(self, literal: str) -> Reading[bool]:
        """Whether this text comes next; then it is read."""
        while True:
            found = self.text[self.at : self.at + len(literal)]
            if found == literal:
                self.at += len(literal)
                return True
            if self.ended or not literal.startswith(found):
                return False
            yield None

    def expect(self, literal: str) -> Reading[None]:
        """Reads this text. Raises Malformed where another one comes."""
        if not (yield from self.comes(literal)):
            raise Malformed

    def until(self, literal: str) -> Reading[str]:
        """The text before the next `literal`, which is read, too. Raises Malformed if there is none."""
        start = seen = self.at
        while (found := self.text.find(literal, seen)) < 0:
            seen = max(start, len(self.text) - len(literal) + 1)
            if self.ended:
                raise Malformed
            yield None
        self.at = found + len(literal)
        return self.text[start:found]

    def match(self, pattern: re.Pattern[str]) -> Reading[str]:
        """The longest text of characters that match the pattern, which is of one character."""
        start = self.at
        while (char := (yield from self.peek())) and pattern.match(char):
            self.at += 1
        return self.text[start : self.at]

    def json_text(self, depth: int = 0) -> Reading[str]:
        """The text of one JSON value, as it was written. Raises Malformed; numbers and words are not looked into."""
        start = self.at
        char = yield from self.peek()
        if depth > MAX_DEPTH:
            raise Malformed
        if char == '"':
            yield from self.string_text()
        elif char == "{":
            yield from self.json_members(depth)
        elif char == "[":
            yield from self._items(depth)
        elif not (yield from self.match(_NUMBER_OR_WORD)):
            raise Malformed
        return self.text[start : self.at]

    def json_members(
        self, depth: int = 0, read: Callable[[str, Mapping[str, str]], Reading[str]] | None = None
    ) -> Reading[dict[str, str]]:
        """The members of a JSON object: the text of each name, and that of its value. Raises Malformed.

        read: reads the value of a name, behind the members before it; by default any JSON.
        """
        members: dict[str, str] = {}
        yield from self.expect("{")
        yield from self.skip_space()
        while not (yield from self.comes("}")):
            if members:
                yield from self.expect(",")
                yield from self.skip_space()
            name = yield from self.string_text()
            yield from self.skip_space()
            yield from self.expect(":")
            yield from self.skip_space()
            members[name] = yield from self.json_text(depth + 1) if read is None else read(name, members)
            yield from self.skip_space()
        return members

    def string_text(self, quote: str = '"') -> Reading[str]:
        """The text of a string, with its quotes. Raises Malformed."""
        start = self.at
        yield from self.expect(quote)
        plain = _PLAIN if quote == '"' else re.compile(rf"[^{quote}\\]*")
        while True:
            found = plain.match(self.text, self.at)
            self.at = found.end() if found is not None else self.at
            char = yield from self.peek()
            if not char:
                raise Malformed
            self.at += 1
            if char == quote:
                return self.text[start : self.at]
            if char == "\\":  # what it escapes is read as it is, a quote included
                if not (yield from self.peek()):
                    raise Malformed
                self.at += 1

    def told(self, reading: Reading[T]) -> Reading[T]:
        """What a reader reads, which is told as arguments of a call while it comes."""
        at = self.at
        while True:
            try:
                next(reading)
            except StopIteration as stop:
                result: T = stop.value
                yield Grown(self.text[at : self.at])
                return result
            if self.at > at:
                yield Grown(self.text[at : self.at])
                at = self.at
            yield None

    def _items(self, depth: int) -> Reading[None]:
        yield from self.expect("[")
        yield from self.skip_space()
        first = True
        while not (yield from self.comes("]")):
            if not first:
                yield from self.expect(",")
                yield from self.skip_space()
            first = False
            yield from self.json_text(depth + 1)
            yield from self.skip_space()
