"""The request of POST /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from server.api.chat.messages import Messages
from server.api.chat.tools import ToolChoice, Tools, check_tools
from server.api.fields import invalid
from server.api.parameters.prediction import Prediction
from server.api.parameters.values import MAX_COUNT, MAX_LOGPROBS
from server.api.requests import SCORES, GenerationRequest, TruncatedPrompt
from server.generation.job import EndpointName
from server.text.chat_template import Ending

MAX_VARIABLES = 32
MAX_VARIABLE_TEXT = 1024


def _check_variables(value: Any) -> Any:
    if not isinstance(value, dict):
        raise invalid("must be an object")
    if len(value) > MAX_VARIABLES:
        raise invalid(f"must have at most {MAX_VARIABLES} members, not {len(value)}")
    for name, one in value.items():
        if not (one is None or isinstance(one, str | int | float)):
            raise invalid(f"must have plain values, not an object or a list, which {name[:64]!r} is")
        if isinstance(one, str) and len(one) > MAX_VARIABLE_TEXT:
            raise invalid(f"must have texts of at most {MAX_VARIABLE_TEXT} characters, which {name[:64]!r} is not")
    return value


Variables = Annotated[
    dict[str, Any],
    BeforeValidator(_check_variables),
    WithJsonSchema(
        {
            "type": "object",
            "maxProperties": MAX_VARIABLES,
            "additionalProperties": {"type": ["string", "number", "boolean", "null"], "maxLength": MAX_VARIABLE_TEXT},
        }
    ),
]


def check_ending(sent: set[str], continues: bool, opens: bool) -> None:
    """Raises a validator's error for a prompt that should end in two ways."""
    if continues and opens and "add_generation_prompt" in sent:
        raise invalid("'continue_final_message' and 'add_generation_prompt' cannot both be true")


def ending_of(continues: bool, opens: bool) -> Ending:
    """How the prompt ends. Who continues a message does not open another one."""
    return "continued" if continues else "open" if opens else "closed"


class ChatRequest(TruncatedPrompt, GenerationRequest):
    """POST /v1/chat/completions"""

    endpoint: ClassVar[EndpointName] = "chat"
    id_prefix: ClassVar[str] = "chatcmpl-"
    prompt_param: ClassVar[str] = "messages"

    messages: Messages
    """The conversation so far, through the model's chat template. Nothing in it becomes a control token."""
    max_completion_tokens: Annotated[int | None, Field(ge=1, le=MAX_COUNT)] = None
    """The newer name of max_tokens."""
    logprobs: bool = False
    """Tell the log-probability of each token of the answer."""
    top_logprobs: Annotated[int | None, Field(ge=0, le=MAX_LOGPROBS)] = None
    """Likeliest tokens to list beside each token of the answer. Needs logprobs."""

    prediction: Annotated[Prediction | None, SCORES] = None
    """A text that the answer repeats for the most part, such as the file to be edited: what of it is right is taken
    many tokens a pass, and the answer is the same. Counted in usage.completion_tokens_details."""
    tools: Tools = Field(default=[])
    """Functions that the model may call."""
    tool_choice: ToolChoice | None = None
    """none, auto, required, a function, or tools to choose from. Unset: auto where there are tools."""
    parallel_tool_calls: bool = True
    """false: an answer calls one tool at most."""
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    """How long to think: told to a chat template that reads it; one that can only be told whether to think is told
    that. Advice elsewhere."""
    add_generation_prompt: bool = True
    """false: the prompt ends behind the last message, not where the assistant speaks next."""
    continue_final_message: bool = False
    """true: the answer goes on where the text of the last message ends."""
    verbosity: Literal["low", "medium", "high"] | None = None
    """How much to say: told to a chat template that reads it. Advice elsewhere."""
    add_special_tokens: bool = False
    """true: BOS stands in front of the prompt even where the chat template does not write it."""
    chat_template_kwargs: Variables = Field(default={})
    """Values that the model's chat template reads by name, such as enable_thinking: texts, numbers, truth values."""
    include_reasoning: bool = True
    """false: the reasoning is left out of the answer."""
    separate_reasoning: bool = True
    """false: the reasoning stays in the content, with its tags."""

    @property
    def offers_tools(self) -> bool:
        """The answer may call tools."""
        return bool(self.tools) and self.tool_choice != "none"

    @property
    def predicted_text(self) -> str:
        return "" if self.prediction is None else self.prediction.text

    @property
    def wanted_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def wanted_max_tokens(self) -> int | None:
        """Most tokens to generate, by either name; None: unset."""
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    @model_validator(mode="after")
    def _check_chat(self) -> Self:
        check_ending(self.model_fields_set, self.continue_final_message, self.add_generation_prompt)
        if self.top_logprobs and not self.logprobs:
            raise invalid("'top_logprobs' requires 'logprobs': true")
        if self.diffusing and self.logprobs:
            raise invalid("'logprobs' cannot be combined with 'diffusing', whose chunks replace each other")
        check_tools(self.tools, self.tool_choice)
        if self.diffusing and self.offers_tools:
            raise invalid("'tools' cannot be combined with 'diffusing', whose chunks hold text alone")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise invalid("'max_tokens' and 'max_completion_tokens' differ: send one of them")
        return self
