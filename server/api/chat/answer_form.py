"""What a chat's answer may be made of: the grammar, with tools and reasoning in their places, and the parser."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Iterable
from typing import NamedTuple

from engine.grammar.structure import Inner, Node, structure_grammar
from server.api.call import Call
from server.api.chat.request import ChatRequest
from server.api.chat.tools import chosen_names, must_call
from server.formats.call_parser import CallParser
from server.formats.parts import OutputParser, PlainText
from server.formats.reasoning import ReasoningParser, Thinking
from server.formats.tool_format import ToolFormat
from server.formats.tools import Tool, UnusableSchema
from server.generation.job import AnswerReading, RequestedGrammar
from server.http.errors import BadRequest
from server.text.chat_template import SHORT_ID_LENGTH, ChatPrompt
from server.text.served_model import ServedModel

_ALPHABET = string.ascii_letters + string.digits


class AnswerForm(NamedTuple):
    """The form of a chat's answer."""

    grammar: RequestedGrammar | None
    reading: AnswerReading | None


def answer_form(call: Call[ChatRequest], model: ServedModel, prompt: ChatPrompt) -> AnswerForm:
    """The form of the answer to a prompt. Raises BadRequest."""
    calls = _callable_tools(call, model)
    thinking = Thinking.CLOSED if model.reasoning is None else model.reasoning.state_of(prompt.end)
    return AnswerForm(_grammar(call, model, calls, thinking), _reading(call, model, calls, thinking))


def _grammar(
    call: Call[ChatRequest], model: ServedModel, calls: _CallableTools | None, thinking: Thinking
) -> RequestedGrammar | None:
    """The grammar of the answer, which binds once the reasoning is over; None where any text will do."""
    bound = None if calls is None else _with_tools(call, model, calls)
    if bound is None and call.grammar is not None and calls is None:
        if thinking is Thinking.CLOSED:
            return call.grammar
        bound = _Bound(Inner(call.grammar.grammar), call.grammar.param, (call.grammar,))
    if bound is None:
        return None
    node = bound.node if model.reasoning is None else model.reasoning.before(bound.node, thinking, model.spell)
    return RequestedGrammar(structure_grammar(node), bound.param, bound.sources)


def _reading(
    call: Call[ChatRequest], model: ServedModel, calls: _CallableTools | None, thinking: Thinking
) -> AnswerReading | None:
    """How the answer is taken apart; None where it is text and nothing else."""
    tags, fields = model.reasoning, call.fields
    new_parser: Callable[[], OutputParser] = PlainText if calls is None else _call_parser(call, model, calls)
    markers = () if calls is None else calls.form.markers
    if tags is None or not fields.separate_reasoning:
        return None if calls is None else AnswerReading(new_parser, _control_tokens(markers, model))
    return AnswerReading(
        lambda: ReasoningParser(tags, thinking, new_parser(), tell=fields.include_reasoning),
        _control_tokens((*markers, *tags), model),
    )


class _Bound(NamedTuple):
    """An answer that a grammar binds."""

    node: Node
    param: str
    """The field of the request that asks for it."""
    sources: tuple[RequestedGrammar, ...]


class _CallableTools(NamedTuple):
    """The tools that an answer may call."""

    form: ToolFormat
    tools: dict[str, Tool]
    places: dict[str, int]
    """Of each tool, its number in the request."""

    def place_of(self, tool: Tool) -> str:
        """The request's field that holds the schema of a tool."""
        return f"tools[{self.places[tool.name]}].function.parameters"


def _callable_tools(call: Call[ChatRequest], model: ServedModel) -> _CallableTools | None:
    """None where the answer calls no tools. Raises BadRequest where the model cannot."""
    fields = call.fields
    if not fields.offers_tools:
        return None
    if model.chat is None or not model.chat.knows_tools:
        raise BadRequest("The model's chat template does not know tools.", "tools", "unsupported_parameter")
    if model.tool_format is None:
        raise BadRequest(
            "The model's way to call tools is not known: the option tool_call_parser can name one.",
            "tools",
            "unsupported_parameter",
        )
    names = chosen_names(fields.tool_choice)
    offered = {tool.function.name: number for number, tool in enumerate(fields.tools)}
    places = {name: number for name, number in offered.items() if names is None or name in names}
    return _CallableTools(model.tool_format, {name: fields.tools[at].tool for name, at in places.items()}, places)


def _with_tools(call: Call[ChatRequest], model: ServedModel, calls: _CallableTools) -> _Bound:
    """An answer that must or may call tools."""
    fields, tools = call.fields, list(calls.tools.values())
    required, parallel = must_call(fields.tool_choice), fields.parallel_tool_calls
    own = None if required else call.grammar
    try:
        if required:
            node = calls.form.calls(tools, parallel, model.spell)
        else:
            node = calls.form.calls_or(None if own is None else Inner(own.grammar), tools, parallel, model.spell)
    except UnusableSchema as error:
        name = calls.place_of(error.tool)
        raise BadRequest(f"Invalid value for '{name}': it {error}.", name, "invalid_grammar") from None
    sources = (RequestedGrammar(tool.grammar, calls.place_of(tool)) for tool in tools if tool.is_held)
    return _Bound(node, "tool_choice" if required else "tools", (*([] if own is None else [own]), *sources))


def _call_parser(call: Call[ChatRequest], model: ServedModel, calls: _CallableTools) -> Callable[[], OutputParser]:
    short = model.chat is not None and model.chat.wants_short_ids
    prefix, length = ("", SHORT_ID_LENGTH) if short else ("call_", 24)

    def new_id() -> str:
        return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(length))

    fields = call.fields
    most = None if fields.parallel_tool_calls else 1
    # A stop string could end an answer within a call, which is then text.
    as_it_comes = fields.stream and not (fields.stop or fields.stop_token_ids)
    return lambda: CallParser(calls.form, calls.tools, new_id, most, as_it_comes=as_it_comes)


def _control_tokens(markers: Iterable[str], model: ServedModel) -> dict[int, str]:
    """The control tokens among some markers, with their spelling."""
    known = model.tokenizer.control_tokens
    return {known[marker]: marker for marker in markers if marker in known}
