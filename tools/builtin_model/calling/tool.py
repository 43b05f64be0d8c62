"""A tool as the chat template shows it, a question that one answers, and what a tool can be asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple


class Parameter(NamedTuple):
    """An argument of a tool."""

    name: str
    type: str
    """As in a JSON schema."""
    options: tuple[str, ...] = ()
    """The texts that it may be; empty where any will do."""
    required: bool = True

    @property
    def line(self) -> str:
        """As the chat template writes it."""
        kind = "|".join(json.dumps(option) for option in self.options) or self.type
        return f"{self.name}{'' if self.required else '?'}: {kind}"


class Tool(NamedTuple):
    """A function that the model may call."""

    name: str
    parameters: tuple[Parameter, ...]
    description: str = ""

    @property
    def line(self) -> str:
        """As the chat template writes it."""
        text = f"{self.name}({', '.join(parameter.line for parameter in self.parameters)})"
        return f"{text} {self.description}" if self.description else text

    @property
    def definition(self) -> dict[str, Any]:
        """As a request gives it."""
        properties = {
            one.name: {"type": one.type, **({"enum": list(one.options)} if one.options else {})}
            for one in self.parameters
        }
        required = [one.name for one in self.parameters if one.required]
        schema = {"type": "object", "properties": properties, "required": required}
        function = {"name": self.name, "description": self.description, "parameters": schema}
        return {"type": "function", "function": function}

    def call(self, arguments: dict[str, Any]) -> str:
        """A call as the chat template writes it."""
        written = json.dumps({"name": self.name, "arguments": arguments}, ensure_ascii=False)
        return f"<tool_call>{written}</tool_call>"


class Asked(NamedTuple):
    """A question that a tool answers."""

    text: str
    arguments: dict[str, Any]
    """Of the call, in the order of the tool's parameters."""
    result: str
    """What the tool says."""
    answer: str


class Ability(NamedTuple):
    """A tool and what it can be asked."""

    tool: Tool
    kind: str
    """For the tables of quality."""
    covers: frozenset[str]
    """What it is for. Tools of one request have nothing in common here, so that one question has one right call."""
    ask: Callable[[Random], Asked]
