"""`tools` and `tool_choice`: the functions that a model may call, and which of them it must."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from server.api.fields import Strict, invalid
from server.formats.tools import Tool

MAX_TOOLS = 128
MAX_NAME = 128


class NamedFunction(Strict):
    """A function by its name."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]+$", max_length=MAX_NAME)]
    """The function's name."""


class FunctionDefinition(NamedFunction):
    """A function that the model may call."""

    description: str | None = None
    """What the function is for; the model reads it."""
    parameters: dict[str, Any] | None = None
    """A JSON schema of the arguments, of type object. Unset: the function has none."""
    strict: bool | None = None
    """false: the arguments may be any object. Else they follow the schema, and a mode that cannot hold them to it is
    refused where this is true."""

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        """The schema of the arguments, of type object; one that lists no properties has none."""
        schema = {"type": "object", "properties": {}} if self.parameters is None else self.parameters
        if "type" not in schema and "$ref" not in schema:
            schema = {"type": "object", **schema}
        if schema.get("properties") == {} and "additionalProperties" not in schema:
            schema = {**schema, "additionalProperties": False}
        return schema


class ToolDefinition(Strict):
    """A tool."""

    type: Literal["function"]
    """The kind of tool."""
    function: FunctionDefinition
    """The function."""
    cache_control: dict[str, Any] | None = None
    """Accepted; has no effect: prefixes are cached by themselves."""

    @property
    def tool(self) -> Tool:
        """The tool, for calls to be read and held to its schema."""
        function = self.function
        return Tool(function.name, function.schema_of_arguments, is_held=function.strict is not False)

    def for_template(self) -> dict[str, Any]:
        """The tool in the form of transformers: no field is null, and nothing is in it that models do not read."""
        fields = {"name": self.function.name, "description": self.function.description or ""}
        return {"type": "function", "function": {**fields, "parameters": plain_json(self.function.schema_of_arguments)}}


class ToolReference(Strict):
    """A tool of the request."""

    type: Literal["function"]
    """The kind of tool."""
    function: NamedFunction
    """Which function."""


class AllowedTools(Strict):
    """Some of the request's tools."""

    mode: Literal["auto", "required"]
    """Whether one of them must be called."""
    tools: Annotated[list[ToolReference], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]
    """The tools that may be called."""


class ToolChoiceObject(Strict):
    """A function that must be called, or tools of which some may be."""

    type: Literal["function", "allowed_tools"]
    """The kind of choice."""
    function: NamedFunction | None = None
    """The function to call, for type function."""
    allowed_tools: AllowedTools | None = None
    """The tools to choose from, for type allowed_tools."""

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if (self.type == "function") is (self.function is None) or (self.type != "function") is (
            self.allowed_tools is None
        ):
            raise invalid(f"must have '{self.type}' with type '{self.type}', and no other choice")
        return self


ToolChoice = Literal["none", "auto", "required"] | ToolChoiceObject
Tools = Annotated[list[ToolDefinition], Field(max_length=MAX_TOOLS, fail_fast=True)]


def check_tools(tools: list[ToolDefinition], choice: ToolChoice | None) -> None:
    """Raises a validator's error for two tools of one name, or a choice of what is not there."""
    places: dict[str, int] = {}
    for number, tool in enumerate(tools):
        name = tool.function.name
        if name in places:
            raise invalid(f"'tools[{number}].function.name' is that of tools[{places[name]}], too: {name!r}")
        places[name] = number
        if tool.function.schema_of_arguments.get("type", "object") != "object":
            raise invalid(f"'tools[{number}].function.parameters' must be a JSON schema of type 'object'")
    if not tools and (choice == "required" or isinstance(choice, ToolChoiceObject)):
        raise invalid("'tool_choice' is only allowed when 'tools' are given")
    for name in chosen_names(choice) or ():
        if name not in places:
            raise invalid(f"'tool_choice' names the function {name[:64]!r}, which is not in 'tools'")


def chosen_names(choice: ToolChoice | None) -> list[str] | None:
    """The names of the functions that may be called; None for all."""
    if not isinstance(choice, ToolChoiceObject):
        return None
    if choice.function is not None:
        return [choice.function.name]
    return [tool.function.name for tool in choice.allowed_tools.tools] if choice.allowed_tools is not None else None


def must_call(choice: ToolChoice | None) -> bool:
    """Whether the answer has to call a tool."""
    if isinstance(choice, ToolChoiceObject):
        return choice.allowed_tools is None or choice.allowed_tools.mode == "required"
    return choice == "required"


def plain_json(value: Any) -> Any:
    """JSON whose numbers are Python's own, as templates and answers write them."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dict):
        return {key: plain_json(inner) for key, inner in value.items()}
    return [plain_json(inner) for inner in value] if isinstance(value, list) else value
