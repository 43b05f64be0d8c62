"""The format of Nemotron 3 and Qwen3-Coder: each argument of a call between tags of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Self

from engine.grammar.structure import Chain, Choice, Exact, Inner, Member, Members, Node, Repeat, Until
from engine.request import Grammar
from server.formats.schemas import Parameter, known_parameters, parameters_of
from server.formats.source import Begun, Grown, Malformed, Reading, Source, beginning_at_end
from server.formats.tool_format import ToolFormat, object_of, one_or_more, told_whole
from server.formats.tools import CalledTool, Spell, Tool, quoted

_END = "\n</parameter>\n"
_TEXT = Until(_END, without=(r"[^\n]</parameter>",))
"""Text and its end. The tag is nowhere in it, not even without a line of its own."""
_OTHER_NAME = Inner(Grammar(kind="regex", source=r"[A-Za-z_][A-Za-z0-9_.-]{0,63}"))


class XmlCalls(ToolFormat):
    """`<tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>`, a line each.

    A value is JSON, but for strings, which stand as they are. A string whose schema asks for more than a list of
    options is JSON, too, where a grammar holds it.
    """

    name = "qwen3_coder"
    openings = ("<tool_call>",)
    closing = "</tool_call>"
    _value_end = "</parameter>"
    markers = ("<tool_call>", "</tool_call>")

    @classmethod
    def recognise(cls, example: str) -> Self | None:
        return cls() if re.search(r"<tool_call>\s*<function=look>", example) else None

    def read(self, source: Source, tools: Mapping[str, Tool]) -> Reading[list[CalledTool]]:
        yield from source.expect(self.openings[0])
        yield from source.skip_space()
        yield from source.expect("<function=")
        name = (yield from source.until(">")).strip()
        if name not in tools:
            raise Malformed
        if tools[name].is_held:
            yield Begun(name)
        arguments = yield from self._read_arguments(source, known_parameters(tools[name]))
        call = CalledTool(name, object_of(arguments))
        yield from source.skip_space()
        if (yield from source.peek()):  # a model may end its answer here
            yield from source.expect(self.closing)
        if not tools[name].is_held:  # a grammar lets it name an argument twice
            yield from told_whole(call)
        return [call]

    def _read_arguments(self, source: Source, known: Mapping[str, Parameter]) -> Reading[dict[str, str]]:
        """The arguments as JSON, up to the end of the function."""
        arguments: dict[str, str] = {}
        yield from source.skip_space()
        while not (yield from source.comes("</function>")):
            yield from source.expect("<parameter=")
            key = (yield from source.until(">")).strip()
            if key in arguments:
                raise Malformed
            yield Grown(f"{', ' if arguments else '{'}{quoted(key)}: ")
            parameter = known.get(key, Parameter(key, {}, False))
            yield from source.comes("\n")
            if parameter.is_string:
                yield Grown('"')
                arguments[key] = quoted((yield from self._read_string(source)))
                yield Grown('"')
            else:
                text = yield from source.until(self._value_end)
                arguments[key] = parameter.json_of(text.removesuffix("\n"))
                yield Grown(arguments[key])
            yield from source.skip_space()
        yield Grown("}" if arguments else "{}")
        return arguments

    def _read_string(self, source: Source) -> Reading[str]:
        """A string up to its end tag, and the line end before that; told as JSON while it comes."""
        start, end = source.at, self._value_end
        while (found := source.text.find(end, source.at)) < 0:
            rest = source.rest
            kept = max(beginning_at_end(rest, end), beginning_at_end(rest, "\n" + end))
            source.at += len(rest) - kept
            yield Grown(quoted(rest[: len(rest) - kept])[1:-1])
            if source.ended:
                raise Malformed
            yield None
        yield Grown(quoted(source.text[source.at : found].removesuffix("\n"))[1:-1])
        source.at = found + len(end)
        return source.text[start:found].removesuffix("\n")

    def rest(self, tools: Sequence[Tool], parallel: bool, spell: Spell) -> Node:
        options = tuple(
            Chain((Exact(f"\n<function={tool.name}>\n"), self._parameters(tool), Exact("</function>\n")))
            for tool in tools
        )
        call = Chain((Choice(options), spell(self.closing)))
        return one_or_more(call, Chain((Exact("\n"), spell(self.openings[0]))), parallel)

    def _parameters(self, tool: Tool) -> Node:
        if not tool.is_held:
            return Repeat(Chain((Exact("<parameter="), _OTHER_NAME, Exact(">\n"), _TEXT)))
        return Members(
            tuple(
                Member(Chain((Exact(f"<parameter={one.name}>\n"), self._value(one))), one.required)
                for one in parameters_of(tool)
            )
        )

    def _value(self, parameter: Parameter) -> Node:
        options = parameter.options
        if options is not None and not any("\n" in option or "</parameter>" in option for option in options):
            return Chain((Choice(tuple(map(Exact, options))), Exact(_END)))
        return _TEXT if parameter.is_text else Chain((parameter.json, Exact(_END)))
