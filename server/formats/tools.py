"""The tools of a request, and a call of one as it was read from generated text."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from engine.grammar.structure import Inner, Node
from engine.request import Grammar
from server.http.json_codec import encode_exactly

Spell = Callable[[str], Node]
"""Writes a marker: as the control token where the model has one for it, else as text."""
NOT_JSON = object()
ANY_OBJECT = Inner(Grammar(kind="json_object"))


class UnusableSchema(ValueError):
    """The parameters of a tool cannot be written in a format. The message continues "it ..."."""

    def __init__(self, tool: Tool, reason: str) -> None:
        super().__init__(reason)
        self.tool = tool


@dataclass(frozen=True)
class Tool:
    """A function that the model may call."""

    name: str
    parameters: dict[str, Any]
    """The JSON schema of its arguments."""
    is_held: bool = True
    """Calls follow the schema; else any object of arguments will do."""

    @property
    def grammar(self) -> Grammar:
        """The grammar of the arguments as JSON."""
        return Grammar(kind="json_schema", source=encode_exactly(self.parameters))

    @property
    def arguments(self) -> Node:
        """The arguments as JSON."""
        return Inner(self.grammar) if self.is_held else ANY_OBJECT


class CalledTool(NamedTuple):
    """A call of a tool."""

    name: str
    arguments: str
    """Text of a JSON object."""


def quoted(text: str) -> str:
    """Text as a JSON string."""
    return json.dumps(text, ensure_ascii=False)


def json_value(text: str) -> Any:
    """The value of a text of JSON; NOT_JSON for any other text."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return NOT_JSON


def is_json(text: str) -> bool:
    """Whether a text is one JSON value."""
    return json_value(text) is not NOT_JSON


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")
