"""The messages of a chat as clients send them, and as chat templates read them.

A message that any OpenAI-compatible server answered with can be sent back as it came. A field that is null was not
sent. A plain value of a field that is not known here goes to the template, and means something where that reads it.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from server.api.fields import Strict, invalid
from server.http.json_codec import InvalidJson, decode_json

MAX_MESSAGES = 4096
MAX_NAME = 256
MAX_TOOL_CALLS = 1024
REFUSED = frozenset(("prefix", "partial", "images", "image", "files", "attachments", "videos", "video"))
"""Fields of a message by which other servers begin the answer with its text, or show the model more than text."""

Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]


def _only_for(*roles: str) -> BeforeValidator:
    """A validator of a field that only messages of some roles have."""

    def check(value: Any, info: ValidationInfo) -> Any:
        role = info.data.get("role", roles[0])
        if value is not None and role not in roles:
            raise invalid(f"has no meaning in a message of role '{role}'")
        return value

    return BeforeValidator(check)


def _required(of: str) -> BeforeValidator:
    """A validator of a field that an object must have where its `type` is `of`."""

    def check(value: Any, info: ValidationInfo) -> Any:
        if value is None and info.data.get("type") == of:
            raise PydanticCustomError("missing", "Field required")
        return value

    return BeforeValidator(check)


_ASSISTANT = _only_for("assistant")
_TOOL = _only_for("tool")


class ContentPart(Strict):
    """A part of a message's content: text, or a refusal of the assistant's."""

    type: Literal["text", "refusal"]
    """The kind of a part."""
    text: Annotated[str | None, _required("text")] = Field(default=None, validate_default=True)
    """The text of a part."""
    refusal: Annotated[str | None, _required("refusal")] = Field(default=None, validate_default=True)
    """The text of a refusal, which is read as text."""
    cache_control: dict[str, Any] | None = None
    """Accepted; has no effect: prefixes are cached by themselves."""
    prompt_cache_breakpoint: dict[str, Any] | None = None
    """Accepted; has no effect: prefixes are cached by themselves."""

    @property
    def shown(self) -> str:
        """The text of the part, of either kind."""
        return (self.text if self.type == "text" else self.refusal) or ""


class FunctionCall(Strict):
    """A function that the assistant called."""

    name: Name
    """The function's name."""
    arguments: str | dict[str, Any] | None = None
    """A JSON object, or the text of one."""
    parsed_arguments: Any = None
    """Accepted; has no effect: the SDKs add it to an answer."""

    def for_template(self) -> dict[str, Any]:
        """Arguments are an object if they are JSON of one, else the text itself: a model may have written anything."""
        arguments: Any = self.arguments or {}
        if isinstance(arguments, str):
            try:
                value = decode_json(arguments.encode())
            except InvalidJson:
                value = None
            arguments = value if isinstance(value, dict) else arguments
        return {"name": self.name, "arguments": arguments}


class CustomCall(Strict):
    """A tool with free text for input that the assistant called."""

    name: Name
    """The tool's name."""
    input: str
    """What the tool was given."""


class ToolCall(Strict):
    """A call of a tool by the assistant."""

    id: str | None = None
    """The call's id, which the tool's message refers to."""
    type: Literal["function", "custom"] = "function"
    """The kind of tool."""
    function: Annotated[FunctionCall | None, _required("function")] = Field(default=None, validate_default=True)
    """The function, for type function."""
    custom: Annotated[CustomCall | None, _required("custom")] = Field(default=None, validate_default=True)
    """The tool, for type custom. Templates read it as a function with the argument `input`."""
    index: int | None = None
    """Accepted; has no effect: streams number their calls."""

    def for_template(self) -> dict[str, Any]:
        """The call in the form of transformers."""
        if self.custom is not None:
            function = {"name": self.custom.name, "arguments": {"input": self.custom.input}}
        else:
            function = {} if self.function is None else self.function.for_template()
        call = {"type": "function", "function": function}
        return call if self.id is None else {"id": self.id, **call}


ToolCalls = Annotated[list[ToolCall], Field(max_length=MAX_TOOL_CALLS, fail_fast=True)]


class Audio(Strict):
    """An answer that was spoken."""

    id: str | None = None
    """Accepted; has no effect."""
    transcript: str | None = None
    """What was said; it is the content of a message that has none."""
    data: str | None = None
    """Accepted; has no effect."""
    expires_at: int | None = None
    """Accepted; has no effect."""


def _check_content(value: Any, info: ValidationInfo) -> Any:
    role = info.data.get("role")
    if isinstance(value, list):
        kinds = ("text", "refusal") if role == "assistant" else ("text",)
        for part in value:
            kind = part.get("type") if isinstance(part, dict) else part.type if isinstance(part, ContentPart) else None
            if kind not in kinds:
                raise invalid(f"has a part of type {str(kind)[:32]!r}; this model takes only parts of type 'text'")
        return value
    if value is None:
        if role not in ("assistant", None):
            raise PydanticCustomError("missing", "Field required")
        audio = info.data.get("audio")
        if audio is not None and audio.transcript is None and info.data.get("refusal") is None:
            raise invalid("must be given beside an 'audio' without transcript: this model hears nothing")
        return value
    if not isinstance(value, str):
        raise invalid("must be a string or a list of text parts")
    return value


def _check_other(name: str) -> str:
    near = difflib.get_close_matches(name[:64], sorted(Message.model_fields), 1, cutoff=0.75)
    if near or name.strip().lower() in Message.model_fields:
        raise PydanticCustomError("extra_forbidden", "unknown")
    if name in REFUSED:
        raise invalid("is not supported in a message: it would change what the model reads")
    return name


class Message(Strict):
    """One turn of a chat. Other fields are accepted, since clients mark their messages with fields of their own."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[Annotated[str, AfterValidator(_check_other)], Any] = Field(init=False)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    """Who speaks. `function` is the older name of `tool`."""
    name: Name | None = None
    """A name of the participant, for templates that use it."""
    refusal: Annotated[str | None, _ASSISTANT] = None
    """What the assistant said when it refused; it is the content of a message that has none."""
    audio: Annotated[Audio | None, _ASSISTANT] = None
    """An answer that was spoken: its transcript is the content of a message that has none."""
    tool_calls: Annotated[ToolCalls | None, _ASSISTANT] = None
    """The tools that the assistant called, for templates that use them."""
    function_call: Annotated[FunctionCall | None, _ASSISTANT] = None
    """The older form of tool_calls."""
    tool_call_id: Annotated[str | None, _TOOL] = None
    """The call that a tool answers."""
    content: Annotated[
        str | Annotated[list[ContentPart], Field(fail_fast=True)] | None, BeforeValidator(_check_content)
    ] = Field(default=None, validate_default=True)
    """Text, or text in parts. Only an assistant's message may go without."""
    reasoning_content: Annotated[str | None, _ASSISTANT] = None
    """How the assistant came to its answer, for templates that use it."""
    reasoning: Annotated[str | None, _ASSISTANT] = None
    """The same under vLLM's name."""
    annotations: Annotated[Annotated[list[Any], Field(fail_fast=True)] | None, _ASSISTANT] = None
    """Accepted; has no effect: sources of an answer that searched the web."""
    parsed: Annotated[Any, _ASSISTANT] = None
    """Accepted; has no effect: the SDKs add it to an answer."""
    cache_control: dict[str, Any] | None = None
    """Accepted; has no effect: prefixes are cached by themselves."""

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value or name not in REFUSED}

    def for_template(self) -> dict[str, Any]:
        """The message in the form of transformers: no field is null, and arguments of tools are objects."""
        message: dict[str, Any] = {"role": "tool" if self.role == "function" else self.role}
        calls = [call.for_template() for call in self.tool_calls or ()]
        if self.function_call is not None:
            calls.append({"type": "function", "function": self.function_call.for_template()})
        content = self._content_for_template()
        if content is not None or not calls:
            message["content"] = "" if content is None else content
        if calls:
            message["tool_calls"] = calls
        reasoning = self.reasoning_content if self.reasoning_content is not None else self.reasoning
        others = {"name": self.name, "tool_call_id": self.tool_call_id, "reasoning_content": reasoning}
        more = {name: value for name, value in self.__pydantic_extra__.items() if isinstance(value, str | int | float)}
        return more | message | {name: value for name, value in others.items() if value is not None}

    def _content_for_template(self) -> str | list[dict[str, str]] | None:
        if isinstance(self.content, list):
            return [{"type": "text", "text": part.shown} for part in self.content]
        spoken = None if self.audio is None else self.audio.transcript
        return next((text for text in (self.content, self.refusal, spoken) if text is not None), None)


Messages = Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
