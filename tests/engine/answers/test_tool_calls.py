"""Calls of tools with random schemas by the built-in model: valid, and the same in every exact mode.

If this fails, an agent gets other calls when the server speculates, or arguments that its tool refuses.
"""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema_rs
import pytest

from engine.grammar.structure import Exact, structure_grammar
from server.formats.call_parser import CallParser
from server.formats.parts import ToolCallArguments
from server.formats.registry import FORMATS
from server.formats.tool_format import ToolFormat
from server.formats.tools import Tool
from tests.conftest import MakeEngine
from tests.engine.driving import ask, drive
from tests.reference.grammars import random_schema
from tests.reference.prompts import builtin_tokenizer, prompt_ids

SCHEMAS = 8
"""Schemas for each format."""
WAYS = [("ar", 2), ("speculative", 4), ("speculative", 32), ("auto", 32)]


def random_tool(rng: random.Random) -> Tool:
    names = rng.sample(["place", "days", "unit", "x"], rng.randint(1, 3))
    properties: dict[str, Any] = {name: random_schema(rng, 2) for name in names}
    schema = {"type": "object", "properties": properties, "required": rng.sample(names, rng.randint(0, len(names)))}
    return Tool("look", schema | {"additionalProperties": False})


def arguments_in(form: ToolFormat, tool: Tool, text: str) -> Any:
    """The arguments of the call that an answer is."""
    parser = CallParser(form, {tool.name: tool}, lambda: "id")
    _, arguments = parser.feed(text) + parser.flush()
    assert isinstance(arguments, ToolCallArguments)
    return json.loads(arguments.text)


@pytest.mark.parametrize("name", ["hermes", "qwen3_coder"])
def test_a_required_call_is_valid_and_the_same_in_every_mode(builtin_engine: MakeEngine, name: str) -> None:
    rng, prompts, form, whole = random.Random(3), prompt_ids(), FORMATS[name](), 0
    tools = [random_tool(rng) for _ in range(SCHEMAS)]
    requests = [
        ask(
            f"{i} {mode} {length}", prompts[i % len(prompts)], mode, block_length=length, max_tokens=120, seed=i,
            temperature=i % 2 * 0.8, grammar=structure_grammar(form.calls([tool], False, Exact)),
        )
        for i, tool in enumerate(tools)
        for mode, length in WAYS
    ]  # fmt: skip
    answers = drive(builtin_engine(prefix_caching=False), requests)
    for i, tool in enumerate(tools):
        plain, *others = [answers[f"{i} {mode} {length}"] for mode, length in WAYS]
        assert all(other.outcome == plain.outcome for other in others), tool
        if plain.finished.reason == "stop":
            whole += 1
            value = arguments_in(form, tool, builtin_tokenizer().decode(plain.tokens))
            assert jsonschema_rs.is_valid(tool.parameters, value), value
    assert whole > 2, "too few calls came to their end: little was checked"
