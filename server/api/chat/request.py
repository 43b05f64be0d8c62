"""The request of POST /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from server.api.fields import Strict, invalid
from server.api.requests import MAX_COUNT, MAX_LOGPROBS, GenerationRequest
from server.generation.job import Endpoint

MAX_MESSAGES = 4096


class TextPart(Strict):
    """A part of a message's content."""

    type: Literal["text"]
    """The kind of a part."""
    text: str
    """The text of a part."""


def _check_content(value: Any) -> Any:
    if isinstance(value, list):
        for part in value:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind != "text":
                raise invalid(f"has a part of type {str(kind)[:32]!r}; this model takes only parts of type 'text'")
        return value
    if not isinstance(value, str):
        raise invalid("must be a string or a list of text parts")
    return value


class Message(Strict):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    """Who speaks."""
    content: Annotated[str | Annotated[list[TextPart], Field(fail_fast=True)], BeforeValidator(_check_content)]
    """Text, or text in parts."""
    name: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] = None
    """A name of the participant, for templates that use it."""

    @property
    def text(self) -> str:
        """The content as one string; parts are separate lines."""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)

    def for_template(self) -> dict[str, str]:
        """The message as chat templates read it. OpenAI's `developer` is what models were trained to call `system`."""
        role = "system" if self.role == "developer" else self.role
        plain = {"role": role, "content": self.text}
        return plain if self.name is None else {**plain, "name": self.name}


Messages = Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions"""

    endpoint: ClassVar[Endpoint] = "chat"
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
