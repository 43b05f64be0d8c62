"""Small chats that show what a chat template does: the forms of content that it takes, and how it writes calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

Message = dict[str, Any]
"""A message in the form of transformers: `content` is a string or a list of parts, arguments of tools are objects."""
Form = Literal["string", "parts"]

FIRST, SECOND = "Avocado7", "Bergamot8"
"""Words that show whether a template renders something."""
SHORT_ID, LONG_ID = "call00001", "call_000000000000000000000001"
_PLACE = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
TOOL = {"type": "function", "function": {"name": "look", "description": FIRST, "parameters": _PLACE}}


def example(role: str, content: Any, other: Any) -> list[Message]:
    """A short chat in which one message, of the given role, has the content."""
    user, message = {"role": "user", "content": other}, {"role": role, "content": content}
    if role == "user":
        return [message]
    if role == "assistant":
        return [user, message, user]
    if role == "tool":
        return [user, _call(SHORT_ID, {}), {**message, "name": "look", "tool_call_id": SHORT_ID}]
    return [message, user]


def call_example(call_id: str = SHORT_ID, content: Any = "x") -> list[Message]:
    """A chat in which the assistant called the function `look` with the argument `place`."""
    result = {"role": "tool", "content": content, "name": "look", "tool_call_id": call_id}
    return [{"role": "user", "content": content}, _call(call_id, {"place": "x"}), result]


def forms_of(role: str, render: Callable[[list[Message]], str]) -> set[Form]:
    """The forms in which a template renders the content of a role; empty where it renders it in none.

    A template that prints a list as it is, with brackets and keys, does not take it.
    """
    found: set[Form] = set()
    if FIRST in render(example(role, FIRST, "x")):
        found.add("string")
    first, second, other = ({"type": "text", "text": text} for text in (FIRST, SECOND, "x"))
    _, _, after = render(example(role, [first, second], [other])).partition(FIRST)
    between, second_word, _ = after.partition(SECOND)
    if second_word and "type" not in between:
        found.add("parts")
    return found


def _call(call_id: str, arguments: dict[str, Any]) -> Message:
    call = {"id": call_id, "type": "function", "function": {"name": "look", "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}
