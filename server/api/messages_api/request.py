"""The requests of POST /v1/messages and /v1/messages/count_tokens, and the chat that they ask for."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from server.api.chat.messages import Message
from server.api.chat.request import ChatRequest
from server.api.chat.tools import ToolChoice, check_tools
from server.api.fields import Strict, not_here
from server.api.messages_api.blocks import InputMessages, TextBlocks, check_messages, to_messages
from server.api.messages_api.tools import MessagesToolChoice, MessagesTools
from server.api.parameters.values import MAX_COUNT, OptionalText, Stops
from server.api.requests import SettledText, shared_values
from server.api.structured_outputs import JsonSchemaFormat, ResponseFormat
from server.generation.job import EndpointName


class ThinkingConfig(Strict):
    """Whether to think."""

    type: Literal["enabled", "disabled", "adaptive"]
    """Told to a chat template that can be told. Advice elsewhere."""
    budget_tokens: Annotated[int | None, Field(ge=1, le=MAX_COUNT)] = None
    """Advice: the model ends its thoughts, and max_tokens bounds thoughts and answer together."""
    display: Literal["summarized", "omitted"] | None = None
    """omitted: thoughts are left out of the answer. Else they are told as they are, not as a summary."""


class JsonOutputFormat(Strict):
    """JSON of a schema."""

    type: Literal["json_schema"]
    """The kind of text."""
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    """A JSON schema; always enforced. An object with `properties` has no others unless `additionalProperties` or
    `unevaluatedProperties` allows them."""


class OutputConfig(Strict):
    """What the answer is like."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    """How long to think: told to a chat template that reads it. Advice elsewhere."""
    format: JsonOutputFormat | None = None
    """The form of the text. Unset: any."""


class PromptFields(Strict):
    """The part of a request that the prompt is made of."""

    messages: InputMessages
    """The conversation so far, through the model's chat template. Where it ends with the assistant, the answer goes on
    with that text."""
    system: str | TextBlocks | None = None
    """A system message in front of the conversation."""
    tools: MessagesTools = Field(default=[])
    """Tools that the model may call."""
    tool_choice: MessagesToolChoice | None = None
    """Whether tools are called, and which. Unset: auto where there are tools."""
    thinking: ThinkingConfig | None = None
    """Whether to think. Unset: as the chat template has it."""
    output_config: OutputConfig | None = None
    """What the answer is like."""
    cache_control: dict[str, Any] | None = None
    """Accepted; has no effect: prefixes are cached by themselves."""
    user_profile_id: str | None = None
    """Accepted; has no effect."""
    workspace_id: str | None = None
    """Accepted; has no effect."""

    @property
    def choice(self) -> ToolChoice | None:
        """The choice of a tool as chats spell it."""
        return None if self.tool_choice is None else self.tool_choice.for_chat()

    @property
    def effort(self) -> Literal["none", "low", "medium", "high", "xhigh", "max"] | None:
        """How long to think, as chats are told; None: not said."""
        effort = None if self.output_config is None else self.output_config.effort
        if self.thinking is None:
            return effort
        return "none" if self.thinking.type == "disabled" else effort or "high"

    @model_validator(mode="after")
    def _check_prompt(self) -> Self:
        check_messages(self.messages)
        check_tools([tool.for_chat() for tool in self.tools], self.choice)
        return self


class CountTokensRequest(PromptFields):
    """POST /v1/messages/count_tokens"""

    model: OptionalText = None
    """The served name, or an alias. May be left out."""


class MessagesRequest(PromptFields, SettledText):
    """POST /v1/messages"""

    endpoint: ClassVar[EndpointName] = "messages"
    id_prefix: ClassVar[str] = "msg_"
    prompt_param: ClassVar[str] = "messages"

    max_tokens: Annotated[int, Field(ge=1, le=MAX_COUNT)]
    """Most tokens to generate, thoughts included. Where the context has room for fewer, the answer may end with the
    stop_reason model_context_window_exceeded."""
    stop_sequences: Stops = Field(default=[])
    """Strings that end the answer; the text ends before them."""
    # Fields of the other endpoints, by which this one says what is asked for in another way.
    stop: Annotated[list[str], *not_here("use 'stop_sequences'")] = Field(default=[])
    """Its name here is stop_sequences."""
    stream_options: Annotated[None, *not_here("events always tell the usage")] = None
    """The first event and the last but one have the usage."""
    response_format: Annotated[None, *not_here("use 'output_config': {'format': ...}")] = None
    """Its name here is output_config.format."""


class MessagesChat(ChatRequest):
    """The chat that a message is the answer of."""

    endpoint: ClassVar[EndpointName] = "messages"
    id_prefix: ClassVar[str] = "msg_"
    prompt_param: ClassVar[str] = "messages"


_OTHERWISE = {"stop", "response_format", "stream_options"}


def to_chat(fields: MessagesRequest) -> MessagesChat:
    """The chat that a request asks for."""
    values = shared_values(fields, _OTHERWISE) | prompt_values(fields)
    values["stop"] = fields.stop_sequences
    values["include_reasoning"] = fields.thinking is None or fields.thinking.display != "omitted"
    form = None if fields.output_config is None else fields.output_config.format
    if form is not None:
        schema = JsonSchemaFormat.model_validate({"name": "answer", "schema": form.schema_})
        values["response_format"] = ResponseFormat(type="json_schema", json_schema=schema)
    # Every value has been checked already, as a field of one of the two requests.
    return MessagesChat.model_construct(_fields_set=set(values), **values)


def to_counted_chat(fields: CountTokensRequest) -> MessagesChat:
    """The chat whose prompt is counted."""
    values = prompt_values(fields)
    return MessagesChat.model_construct(_fields_set=set(values), **values)


def prompt_values(fields: PromptFields) -> dict[str, Any]:
    """The fields of a chat that its prompt is made of."""
    system = fields.system
    if isinstance(system, list):
        system = "\n".join([block.text for block in system])
    choice = fields.tool_choice
    return {
        "messages": [*([Message(role="system", content=system)] if system else []), *to_messages(fields.messages)],
        "tools": [tool.for_chat() for tool in fields.tools],
        "tool_choice": fields.choice,
        "parallel_tool_calls": choice is None or not choice.disable_parallel_tool_use,
        "reasoning_effort": fields.effort,
        "continue_final_message": fields.messages[-1].role == "assistant",
    }
