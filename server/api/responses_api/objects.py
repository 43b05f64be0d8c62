"""The objects of responses: items of the output, the response itself, and the events of a stream."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import field

from server.api.chat.response import ScoredTokenLogprob
from server.api.responses import Count, DiffusionUsage, Response, Usage

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(Response, tag_field="type", tag="output_text"):
    """Text of a message."""

    text: str
    annotations: list[str] = field(default_factory=list)
    logprobs: list[ScoredTokenLogprob] = field(default_factory=list)


class ReasoningText(Response, tag_field="type", tag="reasoning_text"):
    """Text of the model's reasoning."""

    text: str


class OutputMessage(Response, tag_field="type", tag="message"):
    """What the assistant says."""

    id: str
    status: ItemStatus
    content: list[OutputText]
    role: Literal["assistant"] = "assistant"


class FunctionCallItem(Response, tag_field="type", tag="function_call"):
    """A call of a function."""

    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str
    """Text of a JSON object."""


class ReasoningItem(Response, tag_field="type", tag="reasoning"):
    """The model's reasoning before it answers or calls."""

    id: str
    status: ItemStatus
    content: list[ReasoningText]
    summary: list[str] = field(default_factory=list)


OutputItem = OutputMessage | FunctionCallItem | ReasoningItem


class InputTokensDetails(Response):
    """Part of ResponseUsage."""

    cached_tokens: Count
    """Input tokens found in the prefix cache."""


class OutputTokensDetails(Response):
    """Part of ResponseUsage."""

    reasoning_tokens: Count
    """Tokens of the model's reasoning, its tags included."""


class ResponseUsage(Response):
    """The usage under the names that responses have for it."""

    input_tokens: Count
    input_tokens_details: InputTokensDetails
    output_tokens: Count
    output_tokens_details: OutputTokensDetails
    total_tokens: Count
    diffusion: DiffusionUsage

    @classmethod
    def of(cls, usage: Usage) -> ResponseUsage:
        """The same under these names."""
        return cls(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputTokensDetails(usage.prompt_tokens_details.cached_tokens),
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputTokensDetails(usage.completion_tokens_details.reasoning_tokens),
            total_tokens=usage.total_tokens,
            diffusion=usage.diffusion,
        )


class IncompleteDetails(Response):
    """Why a response is not complete."""

    reason: Literal["max_output_tokens"]


class ModelResponse(Response):
    """A response: what was asked for, and the items of the answer."""

    id: str
    object: Literal["response"]
    created_at: Count
    completed_at: Count | None
    status: Literal["in_progress", "completed", "incomplete"]
    error: None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: Count | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: dict[str, Any]
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_p: float
    truncation: Literal["disabled"]
    background: Literal[False]
    usage: ResponseUsage | None


class DeletedResponse(Response):
    """The answer of DELETE /v1/responses/{id}."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class Event(Response, tag_field="type", kw_only=True):
    """An event of a stream, numbered from 0."""

    sequence_number: Count


class Created(Event, tag="response.created"):
    """The first event."""

    response: ModelResponse


class InProgress(Event, tag="response.in_progress"):
    """The second event."""

    response: ModelResponse


class Completed(Event, tag="response.completed"):
    """The last event of an answer that came to its end."""

    response: ModelResponse


class Incomplete(Event, tag="response.incomplete"):
    """The last event of an answer that max_output_tokens or the context ended."""

    response: ModelResponse


class ItemAdded(Event, tag="response.output_item.added"):
    """An item begins."""

    output_index: Count
    item: OutputItem


class ItemDone(Event, tag="response.output_item.done"):
    """An item is whole, or the answer ends within it."""

    output_index: Count
    item: OutputItem


class PartEvent(Event):
    """An event about a part of an item."""

    item_id: str
    output_index: Count


class PartAdded(PartEvent, tag="response.content_part.added"):
    """The content of an item begins."""

    part: OutputText | ReasoningText
    content_index: Count = 0


class PartDone(PartEvent, tag="response.content_part.done"):
    """The content of an item is whole."""

    part: OutputText | ReasoningText
    content_index: Count = 0


class TextDelta(PartEvent, tag="response.output_text.delta"):
    """Text to append."""

    delta: str
    logprobs: list[ScoredTokenLogprob] = field(default_factory=list)
    content_index: Count = 0


class TextDone(PartEvent, tag="response.output_text.done"):
    """The text as a whole."""

    text: str
    logprobs: list[ScoredTokenLogprob] = field(default_factory=list)
    content_index: Count = 0


class ReasoningDelta(PartEvent, tag="response.reasoning_text.delta"):
    """Reasoning to append."""

    delta: str
    content_index: Count = 0


class ReasoningDone(PartEvent, tag="response.reasoning_text.done"):
    """The reasoning as a whole."""

    text: str
    content_index: Count = 0


class ArgumentsDelta(PartEvent, tag="response.function_call_arguments.delta"):
    """Arguments to append."""

    delta: str


class ArgumentsDone(PartEvent, tag="response.function_call_arguments.done"):
    """The arguments as a whole."""

    name: str
    arguments: str


EVENTS = (
    Created, InProgress, Completed, Incomplete, ItemAdded, ItemDone, PartAdded, PartDone, TextDelta, TextDone,
    ReasoningDelta, ReasoningDone, ArgumentsDelta, ArgumentsDone,
)  # fmt: skip
