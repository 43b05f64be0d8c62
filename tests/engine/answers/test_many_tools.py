"""Required calls of two hundred tools by the built-in model, in every exact mode.

If this fails, some tool of some agent gets arguments that it refuses, or other ones when the server speculates.
"""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema_rs
import pytest

from engine.grammar.structure import Exact, structure_grammar
from server.formats.call_parser import CallParser
from server.formats.json_calls import MistralCalls
from server.formats.parts import ToolCallArguments, ToolCallStart
from server.formats.tools import Tool
from tests.conftest import MakeEngine
from tests.engine.driving import ask, drive
from tests.reference.prompts import builtin_tokenizer

CALLS = 108
"""Of each temperature."""
WAYS = ("ar", "speculative", "auto")
_WORDS = ["place", "day", "unit", "note", "when", "id", "n", "to"]
_VALUES: list[dict[str, Any]] = [
    {"type": "string", "maxLength": 3}, {"enum": ["C", "F"]}, {"type": "integer", "minimum": -9, "maximum": 99},
    {"type": "boolean"}, {"type": ["integer", "null"], "minimum": 0, "maximum": 9}, {"const": "x"},
    {"enum": [1, 2.5, None]}, {"type": "string", "pattern": "^[a-c]{1,3}$"},
    {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 2}, {"$ref": "#/$defs/flag"},
    {"anyOf": [{"type": "boolean"}, {"type": "string", "enum": ["auto"]}]},
    {"type": "object", "properties": {"k": {"type": "boolean"}}, "required": ["k"], "additionalProperties": False},
    {"type": "string", "format": "date"}, {"enum": ["kg", "lb", "g"]},
]  # fmt: skip


def tool_of(rng: random.Random, number: int) -> Tool:
    """A tool with one or two arguments of many kinds, in few tokens."""
    names = rng.sample(_WORDS, rng.choice((0, 1, 1, 2)))
    properties = {name: rng.choice(_VALUES) for name in names}
    required = [name for name in names if rng.random() < 0.7]
    shape = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return Tool(f"f{number}", {**shape, "$defs": {"flag": {"type": "boolean"}}})


def prompt_of(tools: list[Tool], rng: random.Random) -> list[int]:
    lines = "\n".join(f"{tool.name}({', '.join(tool.parameters['properties'])})" for tool in tools)
    text = f"<|bos|><|system|>Tools:\n{lines}<|user|>{rng.choice(('Go.', 'Say 12.', 'Use b in F.'))}<|assistant|>"
    return list(builtin_tokenizer().encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_required_calls_are_valid_and_the_same_in_every_exact_mode(
    builtin_engine: MakeEngine, temperature: float
) -> None:
    rng, form = random.Random(int(temperature * 10)), MistralCalls(has_middle=False)  # the shortest one
    offered = [[tool_of(rng, number + i) for i in range(rng.choice((1, 1, 2)))] for number in range(CALLS)]
    grammars = [structure_grammar(form.calls(tools, False, Exact)) for tools in offered]
    prompts = [prompt_of(tools, rng) for tools in offered]
    requests = [
        ask(
            f"{i} {mode}", prompts[i], mode, block_length=32, max_tokens=64, seed=i, temperature=temperature,
            grammar=grammars[i],
        )
        for mode in WAYS
        for i in range(len(offered))
    ]  # fmt: skip
    answers = drive(builtin_engine(kv_cache_tokens=16_384, max_running=48, max_batch_tokens=1024), requests)
    whole = 0
    for i, tools in enumerate(offered):
        plain, *others = [answers[f"{i} {mode}"] for mode in WAYS]
        assert all(other.outcome == plain.outcome for other in others), tools
        if plain.finished.reason != "stop":
            continue
        whole += 1
        text = builtin_tokenizer().decode(plain.tokens)
        parser = CallParser(form, {tool.name: tool for tool in tools}, lambda: "id")
        start, arguments = parser.feed(text) + parser.flush()
        assert isinstance(start, ToolCallStart)
        assert isinstance(arguments, ToolCallArguments)
        schema = next(tool.parameters for tool in tools if tool.name == start.name)
        assert jsonschema_rs.is_valid(schema, json.loads(arguments.text)), (schema, text)
    assert whole > 0.9 * len(offered), f"{whole} calls came to their end: little was checked"
