"""The messages of Anthropic's form, whose content is blocks: text, thoughts, calls of tools, and their results.

They become the messages that a chat has. Turns of one role that follow each other are one turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from server.api.chat.messages import MAX_MESSAGES, ContentPart, FunctionCall, Message, Name, ToolCall
from server.api.fields import Strict, invalid

ERROR = "Error: "
"""Stands before the result of a tool that failed: chat templates have no other way to say so."""


class TextBlock(Strict):
    """A piece of text."""

    type: Literal["text"]
    """The kind of block."""
    text: str
    """The text."""
    cache_control: dict[str, Any] | None = None
    """Accepted; has no effect: prefixes are cached by themselves."""
    citations: list[Any] | None = None
    """Accepted; has no effect: sources of an answer."""


TextBlocks = Annotated[list[TextBlock], Field(fail_fast=True)]

_NEEDED: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "thinking": ("thinking",),
    "redacted_thinking": ("data",),
    "tool_use": ("id", "name", "input"),
    "tool_result": ("tool_use_id",),
}
_ALLOWED: dict[str, tuple[str, ...]] = {
    "text": ("cache_control", "citations"),
    "thinking": ("signature",),
    "redacted_thinking": (),
    "tool_use": ("cache_control", "caller"),
    "tool_result": ("cache_control", "content", "is_error"),
}
"""By the type of a block: the fields that it must have, and those that it may have."""
_OF_ROLE: dict[str, tuple[str, ...]] = {
    "system": ("text",),
    "user": ("text", "tool_result"),
    "assistant": ("text", "thinking", "redacted_thinking", "tool_use"),
}
"""By role: the blocks of its messages."""


class Block(Strict):
    """One block of a message. Any block of an answer can be sent back as it came."""

    type: Literal["text", "thinking", "redacted_thinking", "tool_use", "tool_result"]
    """The kind of block."""
    text: str | None = None
    """The text, of a block of type text."""
    citations: list[Any] | None = None
    """Accepted; has no effect: sources of an answer."""
    cache_control: dict[str, Any] | None = None
    """Accepted; has no effect: prefixes are cached by themselves."""
    thinking: str | None = None
    """How the assistant came to its answer, for templates that use it."""
    signature: str | None = None
    """Accepted; has no effect: thoughts are taken as they are sent."""
    data: str | None = None
    """Accepted; has no effect: only who encrypted thoughts can read them."""
    id: Annotated[str | None, Field(min_length=1, max_length=256)] = None
    """A call, which its result refers to."""
    name: Name | None = None
    """The tool that was called."""
    input: dict[str, Any] | None = None
    """What the tool was called with."""
    caller: dict[str, Any] | None = None
    """Accepted; has no effect: the model itself calls tools."""
    tool_use_id: Annotated[str | None, Field(min_length=1, max_length=256)] = None
    """The call that a result is of, in a message before."""
    content: str | TextBlocks | None = None
    """What the tool returned."""
    is_error: bool = False
    """The tool failed: the model reads "Error: " before the content."""

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        needed = _NEEDED[self.type]
        for name in needed:
            if getattr(self, name) is None:
                raise invalid(f"must have '{name}' with type '{self.type}'")
        for name in self.model_fields_set - {"type", *needed, *_ALLOWED[self.type]}:
            raise invalid(f"must not have '{name}' with type '{self.type}'")
        return self

    @property
    def result(self) -> str | list[ContentPart]:
        """What a tool returned, as a chat's message has it."""
        sign = ERROR if self.is_error else ""
        if isinstance(self.content, list):
            texts = [block.text for block in self.content] or [""]
            return _content([sign + texts[0], *texts[1:]])
        return sign + (self.content or "")


class InputMessage(Strict):
    """One turn."""

    role: Literal["user", "assistant", "system"]
    """Who speaks."""
    content: str | Annotated[list[Block], Field(min_length=1, fail_fast=True)]
    """Text, or blocks."""

    @model_validator(mode="after")
    def _check_blocks(self) -> Self:
        for block in self.blocks:
            if block.type not in _OF_ROLE[self.role]:
                raise invalid(f"must not have a block of type '{block.type}' with role '{self.role}'")
        return self

    @property
    def blocks(self) -> list[Block]:
        """The content as blocks."""
        return [Block(type="text", text=self.content)] if isinstance(self.content, str) else self.content


InputMessages = Annotated[list[InputMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]


def check_messages(messages: Sequence[InputMessage]) -> None:
    """Raises a validator's error for a result without its call, or a conversation that ends with a call."""
    called: set[str | None] = set()
    for number, message in enumerate(messages):
        for place, block in enumerate(message.blocks):
            if block.type == "tool_use":
                called.add(block.id)
            elif block.type == "tool_result" and block.tool_use_id not in called:
                name = f"messages[{number}].content[{place}].tool_use_id"
                raise invalid(f"'{name}' must be the id of a block of type 'tool_use' in a message before")
    if messages[-1].blocks[-1].type == "tool_use":
        raise invalid("'messages' must not end with a call of a tool: its result is missing")


def to_messages(messages: Sequence[InputMessage]) -> list[Message]:
    """A conversation as messages of a chat."""
    collected: list[Message] = []
    turn = _Turn("system")
    for message in messages:
        for block in message.blocks:
            if block.type == "tool_result":
                collected += turn.messages()
                turn = _Turn("user")
                collected.append(Message(role="tool", tool_call_id=block.tool_use_id, content=block.result))
                continue
            if message.role != turn.role:
                collected += turn.messages()
                turn = _Turn(message.role)
            turn.add(block)
    return collected + turn.messages()


@dataclass
class _Turn:
    """What one side says in one turn, while it is collected."""

    role: Literal["user", "assistant", "system"]
    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)

    def add(self, block: Block) -> None:
        if block.text is not None:
            self.texts.append(block.text)
        elif block.thinking is not None:
            self.thoughts.append(block.thinking)
        elif block.type == "tool_use":
            function = FunctionCall(name=block.name or "", arguments=block.input)
            self.calls.append(ToolCall(id=block.id, type="function", function=function))

    def messages(self) -> list[Message]:
        """The turn as one message; none where nothing was said, thought or called."""
        if not (self.texts or self.thoughts or self.calls):
            return []
        if self.role != "assistant":
            return [Message(role=self.role, content=_content(self.texts))]
        return [
            Message(
                role="assistant",
                content="".join(self.texts) if self.texts or not self.calls else None,
                reasoning_content="".join(self.thoughts) or None,
                tool_calls=self.calls or None,
            )
        ]


def _content(texts: list[str]) -> str | list[ContentPart]:
    return texts[0] if len(texts) == 1 else [ContentPart(type="text", text=text) for text in texts]
