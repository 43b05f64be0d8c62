"""Chat messages to prompt tokens through the model's own chat template, which runs in a sandbox.

The prompt is what transformers' `apply_chat_template` makes of the same messages: a BOS is in it if the template writes
one. Message content never becomes a control token. Where content spells one (or could complete one together with its
surroundings), an unguessable marker is put inside the spelling before the template runs. After rendering, a spelling
with no marker in it was written by the template and counts; the markers are then removed. Content that spells no
control token reaches the template untouched, so templates that look into content behave as published.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any, Literal

from engine.errors import ModelLoadError
from server.http.errors import BadRequest
from server.text.control_spellings import ControlSpellings
from server.text.template_environment import TemplateRefusal, template_environment
from server.text.tokenizer import Tokenizer

Message = dict[str, Any]
"""A message in the form of transformers: `content` is a string or a list of parts, arguments of tools are objects."""

Form = Literal["string", "parts"]

_FIRST, _SECOND = "Avocado7", "Bergamot8"
"""Words that show whether a template renders content."""
_CALL = {"id": "call00001", "type": "function", "function": {"name": "look", "arguments": {}}}
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names that templates read a message's reasoning by, the usual one first."""


class ChatTemplate:
    """A model's chat template, compiled once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises ModelLoadError where there is no template, or it does not compile."""
        if tokenizer.chat_template is None:
            raise ModelLoadError("the model has no chat template")
        self._tokenizer = tokenizer
        self._spellings = ControlSpellings(tokenizer.control_tokens)
        try:
            self._template = template_environment().from_string(tokenizer.chat_template)
        except Exception as exc:  # TemplateError, RecursionError and what Python's compiler raises
            line = " ".join(str(exc).split())[:300]
            raise ModelLoadError(f"the model's chat template does not compile: {line}") from None
        self._knows_developer = "developer" in tokenizer.chat_template
        self._knows_tool_calls = "tool_calls" in tokenizer.chat_template
        self._forms = {role: self._forms_of(role) for role in ("system", "developer", "user", "assistant", "tool")}

    def encode(self, messages: list[Message], check_length: Callable[[int], None] | None = None) -> list[int]:
        """Prompt tokens up to where the assistant speaks.

        check_length: is told the number of characters of the rendered text, and raises where they are too many.
        Raises BadRequest when the template refuses the messages.
        """
        if not self._knows_tool_calls and any("tool_calls" in message for message in messages):
            raise BadRequest("The model's chat template does not know tool calls.", "messages", "unsupported_parameter")
        marker = str(secrets.randbelow(10**39) + 10**39)  # digits survive any filter of a template
        guarded = [self._spellings.mark_message(self._fitted(message), marker) for message in messages]
        try:
            text = self._render_any(guarded)
        except TemplateRefusal as exc:
            line = " ".join(str(exc).replace(marker, "").split())[:300]
            raise BadRequest(f"The model's chat template refuses these messages: {line}", "messages") from None
        except Exception:
            # Anything a template trips over is about these messages: it rendered others, and it runs sandboxed.
            raise BadRequest("The model's chat template cannot render these messages.", "messages") from None
        if check_length is not None:
            check_length(len(text) - len(marker) * text.count(marker))
        return self._tokenizer.encode_rendered(text, marker)

    # -- inside -------------------------------------------------------------------------------------------------

    def _render(self, messages: list[Message]) -> str:
        return self._template.render(
            messages=messages, tools=None, documents=None, add_generation_prompt=True, **self._tokenizer.special_texts
        )

    def _render_any(self, messages: list[Message]) -> str:
        """The rendered messages. Content that is missing beside tool calls is empty where a template cannot bear it."""
        try:
            return self._render(messages)
        except TemplateRefusal:
            raise
        except Exception:
            if all("content" in message for message in messages):
                raise
            return self._render([{"content": "", **message} for message in messages])

    def _fitted(self, message: Message) -> Message:
        """The message as this template reads it: the role, the form of the content, the names of the reasoning."""
        fitted = dict(message)
        if fitted["role"] == "developer" and not self._knows_developer:
            fitted["role"] = "system"
        if "content" in fitted:
            fitted["content"] = self._fitted_content(fitted["role"], fitted["content"])
        reasoning = next((fitted[name] for name in _REASONING if fitted.get(name) is not None), None)
        return fitted if reasoning is None else {"thinking": reasoning, **fitted, "reasoning_content": reasoning}

    def _fitted_content(self, role: str, content: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
        forms = self._forms.get(role, set())
        if isinstance(content, str):
            return [{"type": "text", "text": content}] if forms == {"parts"} else content
        return content if "parts" in forms else "\n".join(part["text"] for part in content)

    def _forms_of(self, role: str) -> set[Form]:
        """The forms in which the template renders the content of a role; empty where it renders it in none.

        A template that prints a list as it is, with brackets and keys, does not take it.
        """
        found: set[Form] = set()
        if _FIRST in self._try(_example(role, _FIRST, "x")):
            found.add("string")
        first, second, other = ({"type": "text", "text": text} for text in (_FIRST, _SECOND, "x"))
        _, _, after = self._try(_example(role, [first, second], [other])).partition(_FIRST)
        between, second_word, _ = after.partition(_SECOND)
        if second_word and "type" not in between:
            found.add("parts")
        return found

    def _try(self, messages: list[Message]) -> str:
        try:
            return self._render(messages)
        except Exception:  # whatever it is, the template does not take these messages
            return ""


def _example(role: str, content: Any, other: Any) -> list[Message]:
    """A short chat in which one message, of the given role, has the content."""
    user, message = {"role": "user", "content": other}, {"role": role, "content": content}
    if role == "user":
        return [message]
    if role == "assistant":
        return [user, message, user]
    if role == "tool":
        call = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
        return [user, call, {**message, "name": "look", "tool_call_id": _CALL["id"]}]
    return [message, user]
