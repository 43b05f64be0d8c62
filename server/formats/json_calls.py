"""The formats that write a call as a JSON object: Qwen's and Hermes', Mistral's, Llama 3's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Self

from engine.grammar.structure import Chain, Choice, Exact, Node
from server.formats.source import Begun, Malformed, Reading, Source
from server.formats.tool_format import ToolFormat, checked_object, one_or_more, read_object
from server.formats.tools import CalledTool, Spell, Tool, quoted

_NAME = re.compile(r"[A-Za-z0-9_.:-]")


def _objects(tools: Sequence[Tool], key: str, before: str = "", after: str = "") -> Node:
    """The JSON object of a call of any of the tools, with text around it."""
    return Choice(
        tuple(
            Chain((
                Exact(f'{before}{{"name": {quoted(tool.name)}, "{key}": '), tool.arguments, Exact("}" + after),
            ))
            for tool in tools
        )
    )  # fmt: skip


class HermesCalls(ToolFormat):
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, with or without line ends inside."""

    name = "hermes"
    openings = ("<tool_call>",)
    closing = "</tool_call>"
    markers = ("<tool_call>", "</tool_call>")

    def __init__(self, line_end: str = "\n") -> None:
        """line_end: what separates the markers from what is between them."""
        self._line_end = line_end

    @classmethod
    def recognise(cls, example: str) -> Self | None:
        found = re.search(r'<tool_call>(\s*)\{"name": ?"look"', example)
        return None if found is None else cls(found[1])

    def read(self, source: Source, tools: Mapping[str, Tool]) -> Reading[list[CalledTool]]:
        yield from source.expect(self.openings[0])
        yield from source.skip_space()
        call = yield from read_object(source, "arguments", tools, ["parameters"])
        yield from source.skip_space()
        if (yield from source.peek()):  # a model may end its answer here
            yield from source.expect(self.closing)
        return [call]

    def rest(self, tools: Sequence[Tool], parallel: bool, spell: Spell) -> Node:
        call = Chain((_objects(tools, "arguments", self._line_end, self._line_end), spell(self.closing)))
        return one_or_more(call, Chain((Exact(self._line_end), spell(self.openings[0]))), parallel)


class MistralCalls(ToolFormat):
    """`[TOOL_CALLS]` before a list of JSON objects, or before each call's name and its arguments."""

    name = "mistral"
    openings = ("[TOOL_CALLS]",)
    middle = "[ARGS]"
    markers = ("[TOOL_CALLS]", "[ARGS]")

    def __init__(self, space: str = "", *, lists: bool = False, has_middle: bool = True) -> None:
        """lists: a grammar writes one list of all calls, after `space`. has_middle: `[ARGS]` precedes arguments."""
        self._space, self._lists, self._has_middle = space, lists, has_middle

    @classmethod
    def recognise(cls, example: str) -> Self | None:
        found = re.search(r"\[TOOL_CALLS\](\s*)(\[(?!ARGS)|look)(\[ARGS\])?", example)
        return None if found is None else cls(found[1], lists=found[2] == "[", has_middle=bool(found[3]))

    def read(self, source: Source, tools: Mapping[str, Tool]) -> Reading[list[CalledTool]]:
        yield from source.expect(self.openings[0])
        yield from source.skip_space()
        if (yield from source.peek()) == "[":
            return (yield from self._read_list(source, tools))
        name = yield from source.match(_NAME)
        yield from source.comes(self.middle)
        yield from source.skip_space()
        if (yield from source.peek()) != "{":
            raise Malformed
        yield Begun(name)
        arguments = yield from source.told(source.json_text())
        checked_object(arguments)
        return [CalledTool(name, arguments)]

    def _read_list(self, source: Source, tools: Mapping[str, Tool]) -> Reading[list[CalledTool]]:
        calls: list[CalledTool] = []
        yield from source.expect("[")
        yield from source.skip_space()
        while not calls or not (yield from source.comes("]")):
            if calls:
                yield from source.expect(",")
                yield from source.skip_space()
            calls.append((yield from read_object(source, "arguments", tools)))
            yield from source.skip_space()
        return calls

    def rest(self, tools: Sequence[Tool], parallel: bool, spell: Spell) -> Node:
        if self._lists:
            calls = one_or_more(_objects(tools, "arguments"), Exact(", "), parallel)
            return Chain((Exact(f"{self._space}["), calls, Exact("]")))
        middle = spell(self.middle) if self._has_middle else Exact("")
        options = tuple(Chain((Exact(self._space + tool.name), middle, tool.arguments)) for tool in tools)
        return one_or_more(Choice(options), spell(self.openings[0]), parallel)


class LlamaCalls(ToolFormat):
    """`{"name": ..., "parameters": {...}}` as the whole answer; further ones after a semicolon."""

    name = "llama3_json"
    openings = ("{", "<|python_tag|>")
    markers = ("<|python_tag|>",)
    only_first = True
    not_first = r'\s*\{\s*"(name|type|function)"'

    @classmethod
    def recognise(cls, example: str) -> Self | None:
        return cls() if re.search(r'\{"name": ?"look", ?"parameters": ?\{', example) else None

    def read(self, source: Source, tools: Mapping[str, Tool]) -> Reading[list[CalledTool]]:
        yield from source.comes(self.openings[1])
        yield from source.skip_space()
        calls: list[CalledTool] = []
        while True:
            calls.append((yield from read_object(source, "parameters", tools, ["arguments"])))
            yield from source.skip_space()
            if not (yield from source.comes(";")):
                return calls
            yield from source.skip_space()
            if not (yield from source.peek()):
                return calls

    def rest(self, tools: Sequence[Tool], parallel: bool, spell: Spell) -> Node:
        raise NotImplementedError("the opening is a part of the call")

    def calls(self, tools: Sequence[Tool], parallel: bool, spell: Spell) -> Node:
        return one_or_more(_objects(tools, "parameters"), Exact("; "), parallel)
