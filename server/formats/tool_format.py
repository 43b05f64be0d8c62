"""A tool format: how the models of a family write calls of tools, as a reader and as a grammar."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from engine.grammar.structure import Chain, Choice, Exact, Free, Node, Repeat, Until
from server.formats.source import Begun, Grown, Malformed, Reading, Source
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
        """Reads one call, or several that are written as one; the source stands at an opening. Raises Malformed.

        Tells of each call, in pieces that add up to it: while it comes where it is spelled as a grammar spells it, else
        at its end.
        """

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


def told_whole(call: CalledTool) -> Reading[CalledTool]:
    """Tells of a call at its end."""
    yield Begun(call.name)
    yield Grown(call.arguments)
    return call


def read_object(source: Source, key: str, tools: Mapping[str, Tool], others: Sequence[str] = ()) -> Reading[CalledTool]:
    """Reads the JSON object of a call: "name", and arguments by `key`, or by one of the `others`. Raises Malformed."""
    begun = False

    def value(name: str, members: Mapping[str, str]) -> Reading[str]:
        nonlocal begun
        called_name = json_value(members['"name"']) if list(members) == ['"name"'] else None
        is_known = isinstance(called_name, str) and called_name in tools
        if not is_known or name != quoted(key) or (yield from source.peek()) != "{":
            return (yield from source.json_text(1))
        begun = True
        yield Begun(str(called_name))
        return (yield from source.told(source.json_text(1)))

    members = yield from source.json_members(read=value)
    used = next((one for one in (key, *others) if quoted(one) in members), key)
    call = called(members, used)
    return call if begun else (yield from told_whole(call))


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
