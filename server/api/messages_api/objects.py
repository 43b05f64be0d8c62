"""The objects of Anthropic's form: blocks of the answer, the message itself, and the events of a stream."""

from __future__ import annotations

from typing import Literal

from msgspec import Raw

from server.api.responses import Count, DiffusionUsage, Response, Usage

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class AnswerTextBlock(Response, tag_field="type", tag="text"):
    """Text."""

    text: str
    citations: None = None


class ThinkingBlock(Response, tag_field="type", tag="thinking"):
    """The model's reasoning before it answers or calls."""

    thinking: str
    signature: str
    """A digest of the text. It may be sent back; nothing is checked by it."""


class ToolUseBlock(Response, tag_field="type", tag="tool_use"):
    """A call of a tool."""

    id: str
    name: str
    input: Raw
    """A JSON object, as the model wrote it."""


AnswerBlock = AnswerTextBlock | ThinkingBlock | ToolUseBlock


class ThinkingTokens(Response):
    """Part of MessagesUsage."""

    thinking_tokens: Count
    """Tokens of the model's reasoning, its tags included."""


class MessagesUsage(Response):
    """The usage under the names that Anthropic has for it: what was cached is no part of input_tokens."""

    input_tokens: Count
    cache_creation_input_tokens: Count
    cache_read_input_tokens: Count
    """Prompt tokens found in the prefix cache."""
    output_tokens: Count
    output_tokens_details: ThinkingTokens
    diffusion: DiffusionUsage

    @classmethod
    def of(cls, usage: Usage) -> MessagesUsage:
        """The same under these names."""
        cached = usage.prompt_tokens_details.cached_tokens
        return cls(
            input_tokens=usage.prompt_tokens - cached,
            cache_creation_input_tokens=0,
            cache_read_input_tokens=cached,
            output_tokens=usage.completion_tokens,
            output_tokens_details=ThinkingTokens(usage.completion_tokens_details.reasoning_tokens),
            diffusion=usage.diffusion,
        )


class AnswerMessage(Response):
    """The answer to a conversation."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnswerBlock]
    stop_reason: StopReason | None
    """Null in the first event of a stream."""
    stop_sequence: str | None
    """The one of the stop_sequences that ended the answer, if one did."""
    usage: MessagesUsage


class TokenCount(Response):
    """The answer of /v1/messages/count_tokens."""

    input_tokens: Count


class TextDelta(Response, tag_field="type", tag="text_delta"):
    """Text to append."""

    text: str


class ThinkingDelta(Response, tag_field="type", tag="thinking_delta"):
    """Reasoning to append."""

    thinking: str


class SignatureDelta(Response, tag_field="type", tag="signature_delta"):
    """The signature of reasoning that has ended."""

    signature: str


class InputDelta(Response, tag_field="type", tag="input_json_delta"):
    """Text of JSON to append to a tool's input."""

    partial_json: str


BlockDelta = TextDelta | ThinkingDelta | SignatureDelta | InputDelta


class MessageEnding(Response):
    """Why an answer ended."""

    stop_reason: StopReason | None
    stop_sequence: str | None


class MessagesEvent(Response, tag_field="type"):
    """An event of a stream."""


class MessageStart(MessagesEvent, tag="message_start"):
    """The first event."""

    message: AnswerMessage


class ContentBlockStart(MessagesEvent, tag="content_block_start"):
    """A block begins, empty."""

    index: Count
    content_block: AnswerBlock


class ContentBlockDelta(MessagesEvent, tag="content_block_delta"):
    """More of a block."""

    index: Count
    delta: BlockDelta


class ContentBlockStop(MessagesEvent, tag="content_block_stop"):
    """A block is whole, or the answer ends within it."""

    index: Count


class MessageDelta(MessagesEvent, tag="message_delta"):
    """The end of the answer, and the usage of the whole request."""

    delta: MessageEnding
    usage: MessagesUsage


class MessageStop(MessagesEvent, tag="message_stop"):
    """The last event."""


class Ping(MessagesEvent, tag="ping"):
    """Says nothing."""


MESSAGES_EVENTS = (
    MessageStart, Ping, ContentBlockStart, ContentBlockDelta, ContentBlockStop, MessageDelta, MessageStop,
)  # fmt: skip
