"""The format that writes calls as a list of Python calls, as Llama 3.2 and Llama 4 do."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Self

from engine.grammar.structure import Chain, Choice, Exact, Inner, Member, Members, Node, Repeat
from engine.request import Grammar
from server.formats.schemas import Parameter, parameters_of
from server.formats.source import MAX_DEPTH, Begun, Grown, Malformed, Reading, Source
from server.formats.tool_format import ToolFormat, object_of
from server.formats.tools import CalledTool, Spell, Tool, UnusableSchema, is_json, quoted

_NAME = re.compile(r"[A-Za-z0-9_.:-]")
_KEY = re.compile(r"[^=(),<>\n]")
_INNER = re.compile(r"[^\"'(){}\[\],]")
_WORDS = {"boolean": ("True", "False"), "null": ("None",)}


class PythonicCalls(ToolFormat):
    """`[first(place="Oslo", days=3), second()]` as the whole answer. Values are Python's, or JSON."""

    name = "pythonic"
    openings = ("[", "<|python_start|>")
    markers = ("<|python_start|>", "<|python_end|>")
    only_first = True
    not_first = r"\s*\[\s*[A-Za-z_][A-Za-z0-9_.:-]*\("

    @classmethod
    def recognise(cls, example: str) -> Self | None:
        return cls() if re.search(r"\[look\(place=", example) else None

    def read(self, source: Source, tools: Mapping[str, Tool]) -> Reading[list[CalledTool]]:
        started = yield from source.comes(self.openings[1])
        calls: list[CalledTool] = []
        yield from source.expect("[")
        yield from source.skip_space()
        while not calls or not (yield from source.comes("]")):
            if calls:
                yield from source.expect(",")
                yield from source.skip_space()
            calls.append((yield from self._read_call(source)))
            yield from source.skip_space()
        if started:
            yield from source.comes("<|python_end|>")
        return calls

    def _read_call(self, source: Source) -> Reading[CalledTool]:
        name = yield from source.match(_NAME)
        yield from source.expect("(")
        yield Begun(name)
        yield from source.skip_space()
        arguments: dict[str, str] = {}
        while not (yield from source.comes(")")):
            if arguments:
                yield from source.expect(",")
                yield from source.skip_space()
            key = (yield from source.match(_KEY)).strip()
            yield from source.expect("=")
            if not key or key in arguments:
                raise Malformed
            arguments[key] = _json_of((yield from self._value_text(source)))
            yield Grown(f"{', ' if len(arguments) > 1 else '{'}{quoted(key)}: {arguments[key]}")
        yield Grown("}" if arguments else "{}")
        return CalledTool(name, object_of(arguments))

    def _value_text(self, source: Source) -> Reading[str]:
        """The text of a value, up to the comma or bracket behind it."""
        start, depth = source.at, 0
        while char := (yield from source.peek()):
            if char in "\"'":
                yield from source.string_text(char)
            elif char in "([{":
                depth, source.at = depth + 1, source.at + 1
            elif depth == 0 and char in ",)":
                return source.text[start : source.at]
            elif char in ")]}":
                depth, source.at = depth - 1, source.at + 1
            elif char == ",":
                source.at += 1
            else:
                yield from source.match(_INNER)
            if not 0 <= depth <= MAX_DEPTH:
                raise Malformed
        raise Malformed

    def rest(self, tools: Sequence[Tool], parallel: bool, spell: Spell) -> Node:
        raise NotImplementedError("the opening is a part of the call")

    def calls(self, tools: Sequence[Tool], parallel: bool, spell: Spell) -> Node:
        first, further = self._any_of(tools, "["), self._any_of(tools, ", ")
        return Chain((first, *([Repeat(further)] if parallel else []), Exact("]")))

    def _any_of(self, tools: Sequence[Tool], before: str) -> Node:
        """A call, and what stands before it. In one literal, by which the library tells a call."""
        return Choice(
            tuple(Chain((Exact(f"{before}{tool.name}("), self._arguments(tool), Exact(")"))) for tool in tools)
        )

    def _arguments(self, tool: Tool) -> Node:
        if not tool.is_held:
            raise UnusableSchema(tool, "must be held to: this model's calls cannot be 'strict': false")
        members = (Member(Chain((Exact(f"{one.name}="), _written(one))), one.required) for one in parameters_of(tool))
        return Members(tuple(members), ", ")


def _written(parameter: Parameter) -> Node:
    """A value: Python's words for a lone truth value or null, JSON for all else."""
    kind = parameter.schema.get("type") if isinstance(parameter.schema, dict) else None
    words = _WORDS.get(kind) if isinstance(kind, str) and not parameter.schema.keys() & {"enum", "const"} else None
    return parameter.json if words is None else Inner(Grammar(kind="choice", source=json.dumps(words)))


def _json_of(text: str) -> str:
    """The value, as JSON, that a text of JSON or of Python means. Raises Malformed."""
    if is_json(text):
        return text.strip()
    try:
        return json.dumps(ast.literal_eval(text.strip()), ensure_ascii=False, allow_nan=False)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise Malformed from None
