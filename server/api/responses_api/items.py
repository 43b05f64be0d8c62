"""The items of a response's input: turns of a conversation, calls of tools, what tools said, and reasoning.

They become the messages that a chat has. What the assistant said, thought and called in one turn is one message.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from server.api.chat.messages import MAX_MESSAGES, ContentPart, FunctionCall, Message, Name, ToolCall
from server.api.fields import Strict, invalid

Role = Literal["system", "developer", "user", "assistant"]


class InputPart(Strict):
    """A piece of text: of a message, of a tool's output, or of reasoning."""

    type: Literal["input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text"]
    """The kind of a part."""
    text: str | None = None
    """The text of a part."""
    refusal: str | None = None
    """The text of a refusal."""
    annotations: list[Any] | None = None
    """Accepted; has no effect: sources of an answer."""
    logprobs: list[Any] | None = None
    """Accepted; has no effect: it came with an answer."""
    parsed: Any = None
    """Accepted; has no effect: the SDKs add it to an answer."""
    prompt_cache_breakpoint: dict[str, Any] | None = None
    """Accepted; has no effect: prefixes are cached by themselves."""

    @model_validator(mode="after")
    def _check_text(self) -> Self:
        wanted = "refusal" if self.type == "refusal" else "text"
        if getattr(self, wanted) is None:
            raise invalid(f"must have '{wanted}' with type '{self.type}'")
        return self

    @property
    def shown(self) -> str:
        """The text of the part, of any kind."""
        return (self.refusal if self.type == "refusal" else self.text) or ""


Parts = Annotated[list[InputPart], Field(fail_fast=True)]

_NEEDED: dict[str, tuple[str, ...]] = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "reasoning": (),
}
_ALLOWED: dict[str, tuple[str, ...]] = {
    "message": ("phase",),
    "function_call": ("parsed_arguments", "namespace", "caller"),
    "function_call_output": ("caller",),
    "reasoning": ("content", "summary", "encrypted_content"),
}
"""By the type of an item: the fields that it must have, and those that it may have."""


class InputItem(Strict):
    """One item of the input. Any item of an answer's output can be sent back as it came."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    """The kind of item."""
    id: str | None = None
    """Accepted; has no effect: the id that an answer gave to the item."""
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    """Accepted; has no effect: how far the item had come."""
    role: Role | None = None
    """Who speaks, in a message."""
    content: str | Parts | None = None
    """Text, or text in parts; of a message, or of reasoning."""
    phase: Literal["commentary", "final_answer"] | None = None
    """Accepted; has no effect: what a message of the assistant was for."""
    name: Name | None = None
    """The function that was called."""
    arguments: str | None = None
    """Text of a JSON object: what the function was called with."""
    parsed_arguments: Any = None
    """Accepted; has no effect: the SDKs add it to an answer."""
    namespace: str | None = None
    """Accepted; has no effect: functions have no namespaces here."""
    caller: dict[str, Any] | None = None
    """Accepted; has no effect: the model itself calls functions."""
    call_id: Annotated[str | None, Field(min_length=1, max_length=256)] = None
    """The call, which its output refers to."""
    output: str | Parts | None = None
    """What the function returned."""
    summary: Parts | None = None
    """A summary of reasoning, which stands for it where it has no content."""
    encrypted_content: str | None = None
    """Accepted; has no effect: only who encrypted it can read it."""

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        needed = _NEEDED[self.type]
        for name in needed:
            if getattr(self, name) is None:
                raise invalid(f"must have '{name}' with type '{self.type}'")
        for name in self.model_fields_set - {"type", "id", "status", *needed, *_ALLOWED[self.type]}:
            if getattr(self, name) is not None:
                raise invalid(f"must not have '{name}' with type '{self.type}'")
        return self


Input = Annotated[
    str | Annotated[list[InputItem], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)],
    Field(union_mode="left_to_right"),
]


def to_messages(given: str | list[InputItem]) -> list[Message]:
    """The input as messages of a chat."""
    if isinstance(given, str):
        return [Message(role="user", content=given)]
    messages: list[Message] = []
    turn = AssistantTurn()
    for item in given:
        if not turn.takes(item):
            messages += turn.messages()
            turn = AssistantTurn()
        if item.type == "function_call_output":
            messages.append(Message(role="tool", tool_call_id=item.call_id, content=_content(item.output)))
        elif item.type == "message" and item.role is not None and item.role != "assistant":
            messages.append(Message(role=item.role, content=_content(item.content)))
        else:
            turn.add(item)
    return messages + turn.messages()


@dataclass
class AssistantTurn:
    """What the assistant said, thought and called in one turn, while it is collected."""

    content: str | list[ContentPart] | None = None
    thoughts: str = ""
    calls: list[ToolCall] = field(default_factory=list)

    def takes(self, item: InputItem) -> bool:
        """Whether an item belongs to this turn: thoughts come first, then text, then calls."""
        if item.type == "function_call":
            return True
        if item.type == "reasoning":
            return self.content is None and not self.calls
        return item.type == "message" and item.role == "assistant" and self.content is None and not self.calls

    def add(self, item: InputItem) -> None:
        """Adds an item that the turn takes."""
        if item.type == "function_call":
            self.call(item.call_id or "", item.name or "", item.arguments or "")
        elif item.type == "reasoning":
            self.thoughts += _text(item.content) or _text(item.summary)
        else:
            self.content = _content(item.content)

    def call(self, call_id: str, name: str, arguments: str) -> None:
        """Adds a call of a function."""
        function = FunctionCall(name=name, arguments=arguments)
        self.calls.append(ToolCall(id=call_id, type="function", function=function))

    def messages(self) -> list[Message]:
        """The turn as one message; none where nothing was said or called."""
        if self.content is None and not self.calls:
            return []
        return [
            Message(
                role="assistant",
                content=self.content,
                reasoning_content=self.thoughts or None,
                tool_calls=self.calls or None,
            )
        ]


def _content(given: str | list[InputPart] | None) -> str | list[ContentPart]:
    if isinstance(given, list):
        return given[0].shown if len(given) == 1 else [ContentPart(type="text", text=part.shown) for part in given]
    return given or ""


def _text(given: str | Iterable[InputPart] | None) -> str:
    return given if isinstance(given, str) else "\n".join([part.shown for part in given or ()])
