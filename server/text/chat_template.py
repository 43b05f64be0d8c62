"""Chat messages to prompt tokens through the model's own chat template, which runs in a sandbox.

The prompt is what transformers' `apply_chat_template` makes of the same messages: a BOS is in it if the template writes
one. Nothing that a client sends becomes a control token. Where it spells one (or could complete one together with its
surroundings), an unguessable marker is put inside the spelling before the template runs. After rendering, a spelling
with no marker in it was written by the template and counts; the markers are then removed. Content that spells no
control token reaches the template untouched, so templates that look into content behave as published.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from jinja2 import meta

from engine.errors import ModelLoadError
from server.http.errors import BadRequest
from server.text.control_spellings import ControlSpellings
from server.text.template_environment import TemplateRefusal, template_environment
from server.text.template_examples import FIRST, LONG_ID, TOOL, Message, call_example, example, forms_of
from server.text.tokenizer import Tokenizer

_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names that templates read a message's reasoning by, the usual one first."""
_OURS = frozenset(
    ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template")
)
"""What a template reads that is no choice of a client's."""
SHORT_ID_LENGTH = 9
"""Characters of a call's id for templates that take no longer one."""


Ending = Literal["open", "closed", "continued"]
"""How a prompt ends: where the assistant speaks next, behind the last message, or within it, at the end of its text."""


@dataclass(frozen=True)
class Chat:
    """What a prompt is made of."""

    messages: Sequence[Message]
    tools: Sequence[dict[str, Any]] = ()
    """In the form of OpenAI."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Further values that the template reads by name."""
    ending: Ending = "open"


class ChatPrompt(NamedTuple):
    """A chat as a prompt."""

    token_ids: list[int]
    end: str
    """The last characters of the rendered text."""


class ChatTemplate:
    """A model's chat template, compiled once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises ModelLoadError where there is no template, or it does not compile."""
        if tokenizer.chat_template is None:
            raise ModelLoadError("the model has no chat template")
        self.source = tokenizer.chat_template
        self._tokenizer = tokenizer
        self._spellings = ControlSpellings(tokenizer.control_tokens)
        try:
            environment = template_environment()
            self._template = environment.from_string(self.source)
            read = meta.find_undeclared_variables(environment.parse(self.source))
        except Exception as exc:  # TemplateError, RecursionError and what Python's compiler raises
            line = " ".join(str(exc).split())[:300]
            raise ModelLoadError(f"the model's chat template does not compile: {line}") from None
        self.variables = frozenset(read - _OURS - environment.globals.keys() - tokenizer.special_texts.keys())
        """Names of the values that the template reads beside what every chat has."""
        self._knows_developer = "developer" in self.source
        self._knows_tool_calls = "tool_calls" in self.source
        self._forms = {role: forms_of(role, self._try) for role in ("system", "developer", "user", "assistant", "tool")}
        self.wants_short_ids = False
        """The id of a call must have SHORT_ID_LENGTH letters and digits."""
        self.knows_tools = FIRST in self._try_fitted(example("user", "x", ""), [TOOL])
        """The template tells the model of a request's tools."""
        self.call_example = self._try_fitted(call_example())
        """A chat in which the assistant calls `look` with the argument `place`, rendered; empty if that fails."""
        self.wants_short_ids = bool(self.call_example) and not self._try_fitted(call_example(LONG_ID))

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Prompt tokens of messages alone, up to where the assistant speaks. Raises as `prompt` does."""
        return self.prompt(Chat(messages)).token_ids

    def prompt(self, chat: Chat, check_length: Callable[[int], None] | None = None) -> ChatPrompt:
        """The prompt of a chat, up to the ending that it asks for.

        check_length: is told the number of characters of the rendered text, and raises where they are too many.
        Raises BadRequest when the template refuses the messages, or knows no tools that they have.
        """
        if not self._knows_tool_calls and any("tool_calls" in message for message in chat.messages):
            raise BadRequest("The model's chat template does not know tool calls.", "messages", "unsupported_parameter")
        marker = str(secrets.randbelow(10**39) + 10**39)  # digits survive any filter of a template
        guarded = [self._spellings.mark_message(self._fitted(message), marker) for message in chat.messages]
        tail = ""
        if chat.ending == "continued":
            tail = str(secrets.randbelow(10**39) + 10**39)
            guarded[-1] = _with_tail(guarded[-1], tail)
        tools = [self._spellings.mark_value(tool, marker) for tool in chat.tools]
        variables = {name: self._spellings.mark_value(value, marker) for name, value in chat.variables.items()}
        try:
            text = self._render_any(guarded, tools, variables, opens=chat.ending == "open")
        except TemplateRefusal as exc:
            line = " ".join(str(exc).replace(marker, "").split())[:300]
            raise BadRequest(f"The model's chat template refuses these messages: {line}", "messages") from None
        except Exception:
            # Anything a template trips over is about these messages: it rendered others, and it runs sandboxed.
            raise _unrendered(chat.messages) from None
        if tail:
            text = _cut_at(text, tail)
        if check_length is not None:
            check_length(len(text) - len(marker) * text.count(marker))
        return ChatPrompt(self._tokenizer.encode_rendered(text, marker), text[-64:])

    # -- inside -------------------------------------------------------------------------------------------------

    def _render(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] = (),
        variables: Mapping[str, Any] | None = None,
        *,
        opens: bool = True,
    ) -> str:
        names = {**(variables or {}), **self._tokenizer.special_texts}
        return self._template.render(
            {**names, "messages": messages, "tools": tools or None, "documents": None, "add_generation_prompt": opens}
        )

    def _render_any(
        self, messages: list[Message], tools: Sequence[dict[str, Any]], variables: Mapping[str, Any], *, opens: bool
    ) -> str:
        """The rendered messages. Content that is missing beside tool calls is empty where a template cannot bear it."""
        try:
            return self._render(messages, tools, variables, opens=opens)
        except TemplateRefusal:
            raise
        except Exception:
            if all("content" in message for message in messages):
                raise
            filled = [{"content": "", **message} for message in messages]
            return self._render(filled, tools, variables, opens=opens)

    def _fitted(self, message: Message) -> Message:
        """The message as this template reads it: the role, the form of the content, the names of the reasoning."""
        fitted = dict(message)
        if fitted["role"] == "developer" and not self._knows_developer:
            fitted["role"] = "system"
        if "content" in fitted:
            fitted["content"] = self._fitted_content(fitted["role"], fitted["content"])
        if self.wants_short_ids:
            fitted |= _with_short_ids(fitted)
        reasoning = next((fitted[name] for name in _REASONING if fitted.get(name) is not None), None)
        return fitted if reasoning is None else {"thinking": reasoning, **fitted, "reasoning_content": reasoning}

    def _fitted_content(self, role: str, content: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
        forms = self._forms.get(role, set())
        if isinstance(content, str):
            return [{"type": "text", "text": content}] if forms == {"parts"} else content
        return content if "parts" in forms else "\n".join(part["text"] for part in content)

    def _try_fitted(self, messages: list[Message], tools: Sequence[dict[str, Any]] = ()) -> str:
        return self._try([self._fitted(message) for message in messages], tools)

    def _try(self, messages: list[Message], tools: Sequence[dict[str, Any]] = ()) -> str:
        try:
            return self._render(messages, tools)
        except Exception:  # whatever it is, the template does not take these messages
            return ""


def _with_tail(message: Message, tail: str) -> Message:
    """The message with something behind its text. Raises BadRequest for one without text."""
    content = message.get("content")
    if isinstance(content, list) and content:
        *parts, last = content
        return {**message, "content": [*parts, {**last, "text": last["text"] + tail}]}
    if not isinstance(content, str):
        raise BadRequest("The last of the messages has no text that could be continued.", "messages")
    return {**message, "content": content + tail}


def _cut_at(text: str, tail: str) -> str:
    """The rendered text up to the end of the last message's text. Raises BadRequest if the template leaves it out."""
    before, found, _ = text.rpartition(tail)
    if not found:
        raise BadRequest("The model's chat template leaves out the last of the messages.", "messages")
    return before


def _unrendered(messages: Sequence[Message]) -> BadRequest:
    """The error for messages that a template trips over; arguments that are no JSON object are named, if there are."""
    for number, message in enumerate(messages):
        for place, call in enumerate(message.get("tool_calls", ())):
            if not isinstance(call["function"].get("arguments"), dict):
                name = f"messages[{number}].tool_calls[{place}].function.arguments"
                text = f"Invalid value for '{name}': the model's chat template needs JSON of an object."
                return BadRequest(text, name, "invalid_value")
    return BadRequest("The model's chat template cannot render these messages.", "messages")


def _with_short_ids(message: Message) -> Message:
    """The fields of a message that hold ids of calls, with ids that such templates take."""
    changed: Message = {}
    if "tool_calls" in message:
        changed["tool_calls"] = [
            {**call, "id": _short_id(call["id"])} if "id" in call else call for call in message["tool_calls"]
        ]
    if "tool_call_id" in message:
        changed["tool_call_id"] = _short_id(message["tool_call_id"])
    return changed


def _short_id(call_id: str) -> str:
    """An id of SHORT_ID_LENGTH letters and digits: this one if it is such, else always the same one for it."""
    if len(call_id) == SHORT_ID_LENGTH and call_id.isascii() and call_id.isalnum():
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:SHORT_ID_LENGTH]
