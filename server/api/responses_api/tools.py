"""Tools and their choice as responses spell them, flat, and as chats do."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from server.api.chat.tools import (
    MAX_TOOLS,
    AllowedTools,
    FunctionDefinition,
    NamedFunction,
    ToolChoice,
    ToolChoiceObject,
    ToolDefinition,
    ToolReference,
)
from server.api.fields import Strict, invalid


class FlatTool(FunctionDefinition):
    """A function that the model may call."""

    type: Literal["function"]
    """The kind of tool."""
    defer_loading: Literal[False] = False
    """Accepted: every tool is told to the model at once."""
    allowed_callers: list[Literal["direct"]] | None = None
    """Accepted: the model itself calls functions."""
    output_schema: dict[str, Any] | None = None
    """Accepted; has no effect: what a function returns is not checked."""

    @model_validator(mode="before")
    @classmethod
    def _check_type(cls, data: Any) -> Any:
        """Before any other field: a tool of another kind has other fields."""
        if isinstance(data, dict) and isinstance(data.get("type"), str) and data["type"] != "function":
            raise invalid(f"has the type {data['type'][:64]!r}; only tools of type 'function' can be called")
        return data

    def for_chat(self) -> ToolDefinition:
        """The tool as chats spell it."""
        function = FunctionDefinition(
            name=self.name, description=self.description, parameters=self.parameters, strict=self.strict
        )
        return ToolDefinition(type="function", function=function)


class FlatReference(NamedFunction):
    """A tool of the request."""

    type: Literal["function"]
    """The kind of tool."""


class FlatChoiceObject(Strict):
    """A function that must be called, or tools of which some may be."""

    type: Literal["function", "allowed_tools"]
    """The kind of choice."""
    name: str | None = None
    """The function to call, for type function."""
    mode: Literal["auto", "required"] | None = None
    """Whether one of the tools must be called, for type allowed_tools."""
    tools: Annotated[list[FlatReference], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)] | None = None
    """The tools to choose from, for type allowed_tools."""

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        named = self.type == "function"
        if named is (self.name is None) or named is not (self.mode is None) or named is not (self.tools is None):
            raise invalid("must have 'name' with type 'function', and 'mode' and 'tools' with type 'allowed_tools'")
        return self

    def for_chat(self) -> ToolChoiceObject:
        """The choice as chats spell it."""
        if self.tools is None or self.mode is None:
            return ToolChoiceObject.model_construct(
                type="function", function=NamedFunction.model_construct(name=self.name), allowed_tools=None
            )
        references = [ToolReference(type="function", function=NamedFunction(name=tool.name)) for tool in self.tools]
        return ToolChoiceObject(type="allowed_tools", allowed_tools=AllowedTools(mode=self.mode, tools=references))


FlatTools = Annotated[list[FlatTool], Field(max_length=MAX_TOOLS, fail_fast=True)]
FlatToolChoice = Literal["none", "auto", "required"] | FlatChoiceObject


def choice_for_chat(choice: FlatToolChoice | None) -> ToolChoice | None:
    """The choice as chats spell it; None where there is none."""
    return choice.for_chat() if isinstance(choice, FlatChoiceObject) else choice
