"""A tool format: how the models of a family write calls of tools, as a reader and as a grammar."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from engine.grammar.structure import Chain, Choice, Exact, Free, Node, Repeat, Until
from server.formats.source import Malformed, Reading, Source
from server.formats.tools import CalledTool, Spell, Tool, json_value, quoted


class ToolFormat(ABC):
    """One format. Calls are written one after another; nothing stands behind the last one."""

    name: ClassVar[str]
    """As in the option `tool_call_parser`."""
    openings: ClassVar[tuple[str, ...]]
    """What a call may begin with. The first one is what a grammar wants."""
    markers: ClassVar[tuple[str, ...]] = ()
    """All that a call is written with which may be a control token."""
    only_first: ClassVar[bool] = False
    """Calls stand at the beginning of an answer or nowhere."""
    not_first: ClassVar[str] = ""
    """only_first: what the beginning of any other text must not match, a regular expression."""

    @classmethod
    @abstractmethod
    def recognise(cls, example: str) -> Self | None:
        """The format, fitted to a chat in which the assistant called a tool; None where the chat is not in it.

        example: as a model's template writes it. The function is `look`, with the argument `place`.
        """

    @abstractmethod
    def read(self, source: Source, tools: Mapping[str, Tool]) -> Reading[list[CalledTool]]:
        """Reads one call, or several that are written as one; the source stands at an opening. Raises Malformed."""

    @abstractmethod
    def rest(self, tools: Sequence[Tool], parallel: bool, spell: Spell) -> Node:
        """The grammar of what follows the first opening: one call or, if parallel, more. Raises UnusableSchema."""

    def calls(self, tools: Sequence[Tool], parallel: bool, spell: Spell) -> Node:
        """The grammar of an answer that calls tools. Raises UnusableSchema."""
        return Chain((spell(self.openings[0]), self.rest(tools, parallel, spell)))

    def calls_or(self, other: Node | None, tools: Sequence[Tool], parallel: bool, spell: Spell) -> Node:
        """The grammar of an answer that may call tools, after any text; or that is `other` where it calls none.

        other: None for any text. Raises UnusableSchema.
        """
        calls = self.calls(tools, parallel, spell)
        if other is not None:
            return Choice((other, calls))
        opening = self.openings[0]
        if self.only_first:
            return Choice((Free(not_first=(self.not_first,)), calls))
        if isinstance(spell(opening), Exact):
            rest = self.rest(tools, parallel, spell)
            return Choice((Free(without=(opening,)), Chain((Until(opening), rest))))
        return Chain((Free(without=(opening,)), Choice((Exact(""), calls))))


def one_or_more(call: Node, between: Node, parallel: bool) -> Node:
    """A call and, if parallel, any number of further ones."""
    return Chain((call, Repeat(Chain((between, call))))) if parallel else call


def checked_object(text: str) -> dict[str, Any]:
    """The JSON object that a text is. Of two members of one name the last counts, as it does for clients.

    Raises Malformed.
    """
    value = json_value(text)
    if not isinstance(value, dict):
        raise Malformed
    return value


def called(members: Mapping[str, str], key: str) -> CalledTool:
    """The call that a JSON object tells by the members "name" and `key`. Raises Malformed.

    members: as Source.json_members reads them. Arguments may be an object, or its text in a string.
    """
    name, arguments = members.get('"name"', ""), members.get(f'"{key}"', "{}")
    if arguments.startswith('"'):
        arguments = checked_object('{"text":' + arguments + "}")["text"]
    checked_object(arguments)
    return CalledTool(checked_object('{"name":' + (name or "null") + "}")["name"] or "", arguments)


def object_of(members: Mapping[str, str]) -> str:
    """A JSON object of names and of values as JSON. Raises Malformed where clients could not read it."""
    text = "{" + ", ".join(f"{quoted(name)}: {value}" for name, value in members.items()) + "}"
    checked_object(text)
    return text
