"""Tools and their choice as Anthropic spells them, and as chats do."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from server.api.chat.tools import (
    MAX_TOOLS,
    FunctionDefinition,
    NamedFunction,
    ToolChoice,
    ToolChoiceObject,
    ToolDefinition,
    plain_json,
)
from server.api.fields import Strict, invalid
from server.http.json_codec import encode_json

MAX_EXAMPLES = 64


class MessagesTool(NamedFunction):
    """A tool that the model may call. What it returns comes back in a block of type tool_result."""

    type: Literal["custom"] | None = None
    """The kind of tool."""
    description: str | None = None
    """What the tool is for; the model reads it."""
    input_schema: dict[str, Any]
    """A JSON schema of the input, of type object."""
    strict: bool | None = None
    """false: the input may be any object. Else it follows the schema, and a mode that cannot hold it to that is
    refused where this is true."""
    input_examples: list[dict[str, Any]] = Field(default=[], max_length=MAX_EXAMPLES, fail_fast=True)
    """Inputs that the model reads behind the description."""
    cache_control: dict[str, Any] | None = None
    """Accepted; has no effect: prefixes are cached by themselves."""
    eager_input_streaming: bool | None = None
    """Accepted; has no effect: an input is told once it is whole."""
    defer_loading: Literal[False] = False
    """Every tool is told to the model at once."""
    allowed_callers: list[Literal["direct"]] | None = None
    """The model itself calls tools."""

    @model_validator(mode="before")
    @classmethod
    def _check_type(cls, data: Any) -> Any:
        """Before any other field: a tool of another kind has other fields."""
        if isinstance(data, dict) and isinstance(data.get("type"), str) and data["type"] != "custom":
            raise invalid(f"has the type {data['type'][:64]!r}; only tools of type 'custom' can be called")
        return data

    def for_chat(self) -> ToolDefinition:
        """The tool as chats spell it."""
        examples = [encode_json(plain_json(example)).decode() for example in self.input_examples]
        described = "\n".join([*([self.description] if self.description else []), "Examples of input:", *examples])
        function = FunctionDefinition(
            name=self.name,
            description=described if examples else self.description,
            parameters=self.input_schema,
            strict=self.strict,
        )
        return ToolDefinition(type="function", function=function)


class MessagesToolChoice(Strict):
    """Whether tools are called, and which."""

    type: Literal["auto", "any", "tool", "none"]
    """auto: as the model likes. any: one of them must be called. tool: this one must. none: none may."""
    name: str | None = None
    """The tool to call, for type tool."""
    disable_parallel_tool_use: bool = False
    """true: an answer calls one tool at most."""

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        if (self.type == "tool") is (self.name is None):
            raise invalid("must have 'name' with type 'tool', and with no other")
        return self

    def for_chat(self) -> ToolChoice:
        """The choice as chats spell it."""
        if self.type == "any":
            return "required"
        if self.type != "tool":
            return self.type
        return ToolChoiceObject.model_construct(
            type="function", function=NamedFunction.model_construct(name=self.name), allowed_tools=None
        )


MessagesTools = Annotated[list[MessagesTool], Field(max_length=MAX_TOOLS, fail_fast=True)]
