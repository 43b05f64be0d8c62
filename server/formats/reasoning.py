"""Reasoning: what a model writes between tags before its answer, apart from the answer itself."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from engine.grammar.structure import Chain, Choice, Exact, Free, Inner, Node, Until
from engine.request import Grammar
from server.formats.parts import OutputParser, Part, Thought
from server.formats.source import SPACE, beginning_at_end
from server.formats.tools import Spell

_LINE_ENDS = Inner(Grammar(kind="regex", source=r"\n{0,2}"))


class Thinking(Enum):
    """What a prompt says of the reasoning of the answer that follows it."""

    OPEN = "open"
    """The answer begins within it."""
    CLOSED = "closed"
    """The answer has none."""
    UNSAID = "unsaid"
    """The answer may begin with it."""


class ReasoningTags(NamedTuple):
    """The tags around the reasoning of a family of models."""

    opening: str
    closing: str

    def state_of(self, prompt: str) -> Thinking:
        """What the end of a rendered prompt says."""
        end = prompt.rstrip()
        if end.endswith(self.opening):
            return Thinking.OPEN
        return Thinking.CLOSED if end.endswith(self.closing) else Thinking.UNSAID

    def before(self, answer: Node, thinking: Thinking, spell: Spell) -> Node:
        """The grammar of an answer that binds once the reasoning is over."""
        if thinking is Thinking.CLOSED:
            return answer
        rest = Chain((_up_to(self.closing, spell), _LINE_ENDS, answer))
        return rest if thinking is Thinking.OPEN else Choice((Chain((spell(self.opening), rest)), answer))


TAGS = {"think": ReasoningTags("<think>", "</think>"), "mistral": ReasoningTags("[THINK]", "[/THINK]")}
"""By name, as in the option `reasoning_parser`."""


def recognise_reasoning(template: str) -> ReasoningTags | None:
    """The tags that a chat template knows; None where it knows none."""
    return next((tags for tags in TAGS.values() if tags.closing in template), None)


def _up_to(marker: str, spell: Spell) -> Node:
    """Any text up to a marker."""
    node = spell(marker)
    return Until(marker) if isinstance(node, Exact) else Chain((Free(), node))


class ReasoningParser:
    """Reasoning first, then what another parser makes of the answer. White space around the reasoning is left out."""

    def __init__(self, tags: ReasoningTags, thinking: Thinking, answer: OutputParser, *, tell: bool = True) -> None:
        """tell: otherwise the reasoning is dropped."""
        self._tags, self._answer, self._tell = tags, answer, tell
        self._at_start = thinking is not Thinking.CLOSED
        self.is_thinking = thinking is Thinking.OPEN
        """See OutputParser."""
        self._pending = ""  # not told yet, of the reasoning or before it
        self._at_thought = False  # white space before the reasoning is left out
        self._strips = False  # white space before the answer is left out

    def feed(self, text: str) -> list[Part]:
        """See OutputParser."""
        if not (self._at_start or self.is_thinking or self._strips):
            return self._answer.feed(text)
        self._pending += text
        if self._at_start and not self._begin():
            return []
        parts: list[Part] = []
        if self.is_thinking:
            parts += self._think()
        if not self.is_thinking:
            text = self._pending.lstrip(SPACE) if self._strips else self._pending
            self._pending = ""
            self._strips = self._strips and not text
            parts += self._answer.feed(text)
        return parts

    def flush(self) -> list[Part]:
        """See OutputParser."""
        text, self._pending = self._pending, ""
        parts: list[Part] = []
        if self.is_thinking:
            thought = text.strip(SPACE) if self._at_start else text.rstrip(SPACE)
            parts += self._thought(thought)
        elif self._at_start:
            parts += self._answer.feed(text)
        return parts + self._answer.flush()

    # -- inside -------------------------------------------------------------------------------------------------

    def _begin(self) -> bool:
        """Whether the text so far tells how the answer begins; an opening tag and what is before it are dropped."""
        first = self._pending.lstrip(SPACE)
        if self._tags.opening.startswith(first) and first != self._tags.opening:
            return False
        self._at_start = False
        if first.startswith(self._tags.opening):
            self.is_thinking = True
            first = first.removeprefix(self._tags.opening)
        if self.is_thinking:
            self._pending = first
            self._at_thought = True
        return True

    def _think(self) -> list[Part]:
        """The reasoning so far. The pending text is then the beginning of the answer, or what is held back."""
        text = self._pending.lstrip(SPACE) if self._at_thought else self._pending
        thought, closing, rest = text.partition(self._tags.closing)
        if closing:
            self.is_thinking, self._strips, self._pending = False, True, rest
            thought = thought.rstrip(SPACE)
        else:
            thought = text[: len(text) - beginning_at_end(text, self._tags.closing)].rstrip(SPACE)
            self._pending = text[len(thought) :]
        self._at_thought = self._at_thought and not thought
        return self._thought(thought)

    def _thought(self, text: str) -> list[Part]:
        return [Thought(text)] if text and self._tell else []
