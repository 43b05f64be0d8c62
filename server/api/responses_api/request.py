"""The request of POST /v1/responses, and the chat that it asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from server.api.chat.messages import MAX_MESSAGES, Message
from server.api.chat.request import ChatRequest
from server.api.chat.tools import check_tools
from server.api.fields import Strict, invalid, not_here
from server.api.parameters.values import MAX_COUNT, MAX_LOGPROBS
from server.api.requests import SettledText, StreamOptions, shared_values
from server.api.responses_api.items import Input
from server.api.responses_api.tools import FlatToolChoice, FlatTools, choice_for_chat
from server.api.structured_outputs import JsonSchemaFormat, ResponseFormat
from server.generation.job import EndpointName
from server.http.errors import BadRequest

Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]


_LOGPROBS = "message.output_text.logprobs"


class TextFormat(Strict):
    """The form of the text: any, JSON, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    """The kind of text."""
    name: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] = None
    """A name of the schema, for type json_schema."""
    description: str | None = None
    """What the schema is for; it changes nothing."""
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    """A JSON schema, for type json_schema; always enforced. An object with `properties` has no others unless
    `additionalProperties` or `unevaluatedProperties` allows them."""
    strict: bool | None = None
    """Accepted: a schema is always enforced."""

    @model_validator(mode="after")
    def _check_schema(self) -> Self:
        has_schema = self.type == "json_schema"
        if has_schema is (self.schema_ is None) or (has_schema and self.name is None):
            raise invalid("must have 'name' and 'schema' with type 'json_schema', and no schema with another type")
        return self

    def for_chat(self) -> ResponseFormat:
        """The form as chats spell it."""
        if self.name is None or self.schema_ is None:
            return ResponseFormat(type=self.type)
        schema = {"name": self.name, "schema": self.schema_}
        return ResponseFormat(type=self.type, json_schema=JsonSchemaFormat.model_validate(schema))


class TextOptions(Strict):
    """What the text is like."""

    format: TextFormat | None = None
    """Text, JSON, or JSON of a schema."""
    verbosity: Literal["low", "medium", "high"] | None = None
    """Advice that no model here takes."""


class ReasoningOptions(Strict):
    """How to reason."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    """How long to think: told to a chat template that reads it. Advice elsewhere."""
    summary: Literal["auto"] | None = None
    """Accepted: the reasoning itself is told, and no summary of it."""
    generate_summary: Literal["auto"] | None = None
    """The older name of summary."""


class ResponseStreamOptions(StreamOptions):
    """What a stream carries besides its events. The last one always has the usage."""

    continuous_usage_stats: Literal[False] = False
    """Only the last event has the usage."""
    include_drafts: Literal[False] = False
    """Events hold settled text alone."""


class ResponsesRequest(SettledText):
    """POST /v1/responses"""

    endpoint: ClassVar[EndpointName] = "responses"
    id_prefix: ClassVar[str] = "resp_"
    prompt_param: ClassVar[str] = "input"

    input: Input
    """A user's message, or the items of a conversation, through the model's chat template."""
    instructions: str | None = None
    """A system message in front of the conversation. It is not carried over to the next response."""
    previous_response_id: str | None = None
    """A stored response that this one goes on from: its conversation stands before the input."""
    store: bool = False
    """Keep the response and its conversation in memory, for previous_response_id and GET. A restart forgets it."""
    metadata: Metadata = Field(default={})
    """Told in the response; it changes nothing."""
    max_output_tokens: Annotated[int | None, Field(ge=1, le=MAX_COUNT)] = None
    """Most tokens to generate, reasoning included. Unset: the rest of the context."""
    tools: FlatTools = Field(default=[])
    """Functions that the model may call."""
    tool_choice: FlatToolChoice | None = None
    """none, auto, required, a function, or tools to choose from. Unset: auto where there are tools."""
    parallel_tool_calls: bool = True
    """false: an answer calls one tool at most."""
    max_tool_calls: Annotated[int | None, Field(ge=1)] = None
    """Accepted; has no effect: it bounds calls of tools that a server runs itself, and this one runs none."""
    text: TextOptions | None = None
    """The form of the text."""
    reasoning: ReasoningOptions | None = None
    """How to reason."""
    include: list[str] = Field(default=[], max_length=32, fail_fast=True)
    """`message.output_text.logprobs`: tell the log-probability of each token of the text; not with tools. Others have
    no effect: reasoning is told in the clear (`reasoning.encrypted_content`), and no tool runs on the server."""
    truncation: Literal["disabled"] = "disabled"
    """What does not fit the context is refused, never left out."""
    background: Literal[False] = False
    """A response is answered while its client waits."""
    top_logprobs: Annotated[int | None, Field(ge=0, le=MAX_LOGPROBS)] = None
    """Likeliest tokens to list beside each token of the text. Needs `message.output_text.logprobs` in include."""
    stream_options: ResponseStreamOptions | None = None
    """What a stream carries besides its events."""
    # Fields of the other endpoints, by which this one says what is asked for in another way.
    max_tokens: Annotated[None, *not_here("use 'max_output_tokens'")] = None
    """Its name here is max_output_tokens."""
    response_format: Annotated[None, *not_here("use 'text': {'format': ...}")] = None
    """Its name here is text.format."""

    @property
    def wanted_logprobs(self) -> int | None:
        """None: none are told."""
        return (self.top_logprobs or 0) if _LOGPROBS in self.include else None

    @model_validator(mode="after")
    def _check_response(self) -> Self:
        check_tools([tool.for_chat() for tool in self.tools], choice_for_chat(self.tool_choice))
        if self.top_logprobs and self.wanted_logprobs is None:
            raise invalid(f"'top_logprobs' needs '{_LOGPROBS}' in 'include'")
        if self.wanted_logprobs is not None and self.tools and self.tool_choice != "none":
            raise invalid("'include' asks for log-probabilities, which are not told of answers that may call tools")
        return self


class ResponseChat(ChatRequest):
    """The chat that a response is the answer of."""

    endpoint: ClassVar[EndpointName] = "responses"
    id_prefix: ClassVar[str] = "resp_"
    prompt_param: ClassVar[str] = "input"


_OTHERWISE = {"max_tokens", "response_format", "stream_options"}


def to_chat(fields: ResponsesRequest, messages: Sequence[Message]) -> ResponseChat:
    """The chat that a request asks for. messages: its conversation, instructions apart. Raises BadRequest."""
    if len(messages) > MAX_MESSAGES:
        text = f"The conversation has {len(messages)} messages; at most {MAX_MESSAGES} are allowed."
        raise BadRequest(text, "input", "invalid_value")
    system = [] if fields.instructions is None else [Message(role="system", content=fields.instructions)]
    values = shared_values(fields, _OTHERWISE)
    values |= {
        "messages": [*system, *messages],
        "max_completion_tokens": fields.max_output_tokens,
        "tools": [tool.for_chat() for tool in fields.tools],
        "tool_choice": choice_for_chat(fields.tool_choice),
        "parallel_tool_calls": fields.parallel_tool_calls,
        "logprobs": fields.wanted_logprobs is not None,
        "top_logprobs": fields.wanted_logprobs,
        "reasoning_effort": None if fields.reasoning is None else fields.reasoning.effort,
    }
    if fields.text is not None and fields.text.format is not None:
        values["response_format"] = fields.text.format.for_chat()
    # Every value has been checked already, as a field of one of the two requests.
    return ResponseChat.model_construct(_fields_set=set(values), **values)
