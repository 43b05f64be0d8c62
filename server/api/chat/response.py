"""The response objects of POST /v1/chat/completions."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, UnsetType

from server.api.responses import (
    Count,
    DiffusionMeta,
    FinishReason,
    PromptLogprobs,
    RequestMetrics,
    Response,
    StopReason,
    Usage,
)
from server.generation.choice import Draft
from server.generation.unmasked import UnmaskedToken


class TokenLogprob(Response):
    """A token and its log-probability. `bytes` are its UTF-8 bytes, null where the tokenizer does not say."""

    token: str
    logprob: float
    bytes: list[Count] | None


class ScoredTokenLogprob(Response):
    """A token of the answer, and the likeliest tokens in its place."""

    token: str
    logprob: float
    bytes: list[Count] | None
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(Response):
    """Log-probabilities of the answer's tokens."""

    content: list[ScoredTokenLogprob]
    refusal: None


class CalledFunction(Response):
    """The function of a call."""

    name: str
    arguments: str
    """Text of a JSON object."""


class ToolCall(Response):
    """A call of a tool by the assistant."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class CalledFunctionDelta(Response):
    """What is new in the function of a call: its name and no arguments, then arguments to append."""

    arguments: str
    name: str | UnsetType = UNSET


class ToolCallDelta(Response):
    """What is new in a call. Id, type and name come once, first."""

    index: Count
    function: CalledFunctionDelta
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class ChatMessage(Response):
    """The assistant's message."""

    role: Literal["assistant"]
    content: str | None
    """Null where the message calls tools and says nothing."""
    refusal: None
    reasoning_content: str | UnsetType = UNSET
    """The model's reasoning before its answer, where there is any."""
    tool_calls: list[ToolCall] | UnsetType = UNSET
    """The calls of tools, where there are any."""


class ChatChoice(Response):
    """One answer."""

    index: Count
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    stop_reason: StopReason
    token_ids: list[Count] | UnsetType = UNSET
    """All tokens of the answer, an end token included; only with return_token_ids."""
    unmasking: list[UnmaskedToken] | UnsetType = UNSET
    """How all of them were unmasked; only with unmasking_trace."""


class ChatCompletion(Response):
    """The answer to a chat request that is not streamed."""

    id: str
    object: Literal["chat.completion"]
    created: Count
    model: str
    choices: list[ChatChoice]
    usage: Usage
    metrics: RequestMetrics | UnsetType = UNSET
    """How long it took."""
    prompt_token_ids: list[Count] | UnsetType = UNSET
    """The tokens of the prompt; only with return_token_ids."""
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    """Only with prompt_logprobs."""


class ChatMessageDelta(Response):
    """What is new in the assistant's message."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatDelta(Response):
    """The news about one answer."""

    index: Count
    delta: ChatMessageDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: StopReason | UnsetType = UNSET
    """Only beside a finish_reason."""
    draft: Draft | UnsetType | None = UNSET
    """Tokens that are not settled yet; only with stream_options.include_drafts, where they changed."""
    token_ids: list[Count] | UnsetType = UNSET
    """Further tokens of the answer; only with return_token_ids."""
    unmasking: list[UnmaskedToken] | UnsetType = UNSET
    """How further tokens were unmasked; only with unmasking_trace."""


class ChatCompletionChunk(Response):
    """One event of a streamed chat."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: Count
    model: str
    choices: list[ChatDelta]
    diffusion_meta: DiffusionMeta | UnsetType = UNSET
    usage: Usage | UnsetType | None = UNSET
    metrics: RequestMetrics | UnsetType = UNSET
    """Beside the usage of the whole request."""
    prompt_token_ids: list[Count] | UnsetType = UNSET
    """The tokens of the prompt, once for each answer; only with return_token_ids."""
