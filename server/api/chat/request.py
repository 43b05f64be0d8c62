"""The request of POST /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from server.api.chat.messages import Messages
from server.api.fields import invalid
from server.api.requests import MAX_COUNT, MAX_LOGPROBS, GenerationRequest
from server.generation.job import EndpointName


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions"""

    endpoint: ClassVar[EndpointName] = "chat"
    id_prefix: ClassVar[str] = "chatcmpl"
    prompt_param: ClassVar[str] = "messages"

    messages: Messages
    """The conversation so far, through the model's chat template. Nothing in it becomes a control token."""
    max_completion_tokens: Annotated[int | None, Field(ge=1, le=MAX_COUNT)] = None
    """The newer name of max_tokens."""
    logprobs: bool = False
    """Tell the log-probability of each token of the answer."""
    top_logprobs: Annotated[int | None, Field(ge=0, le=MAX_LOGPROBS)] = None
    """Likeliest tokens to list beside each token of the answer. Needs logprobs."""

    @property
    def wanted_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def wanted_max_tokens(self) -> int | None:
        """Most tokens to generate, by either name; None: unset."""
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    @model_validator(mode="after")
    def _check_chat(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise invalid("'top_logprobs' requires 'logprobs': true")
        if self.diffusing and self.logprobs:
            raise invalid("'logprobs' cannot be combined with 'diffusing', whose chunks replace each other")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise invalid("'max_tokens' and 'max_completion_tokens' differ: send one of them")
        return self
