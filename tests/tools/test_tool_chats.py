"""The chats with tools that the built-in model learns from. If these fail, it learns calls that are wrong."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from fractions import Fraction
from typing import Any

import jsonschema_rs
import pytest

from server.text.template_environment import template_environment
from tools.builtin_model.calling.arithmetic_tools import calculator, converter
from tools.builtin_model.calling.chats import DECLINED, abilities_of, asked_of, called, introduction, tool_chat
from tools.builtin_model.calling.lookup_tools import clock, lookup, search
from tools.builtin_model.calling.measured import tool_prompts
from tools.builtin_model.calling.tool import Ability
from tools.builtin_model.export import CHAT_TEMPLATE
from tools.builtin_model.held_out import held_out

MAKERS = (calculator, converter, lookup, clock, search)


def test_a_chat_is_spelled_as_the_template_spells_it() -> None:
    """The model would never see at work what it was trained on."""
    template = template_environment().from_string(CHAT_TEMPLATE)
    rng = random.Random(1)
    for _ in range(100):
        abilities = abilities_of(rng)
        ability, asked = asked_of(rng, abilities)
        *_, result, answer = parts = called(rng, ability, asked)
        tools = [one.tool for one in abilities]
        intro = introduction(rng, tools)
        system = intro.removeprefix("<|system|>").partition("Tools:\n")[0].removesuffix("\n")
        function = {"name": ability.tool.name, "arguments": asked.arguments}
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": system},
            {"role": "user", "content": asked.text},
            {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]},
            {"role": "tool", "content": re.findall(r"<tool_response>(.*)</tool_response>", result.text)[0]},
            {"role": "assistant", "content": answer.text.removesuffix("<|eos|>")},
        ]
        rendered = template.render(messages=messages[0 if system else 1 :], tools=[one.definition for one in tools])
        assert rendered == "<|bos|>" + intro + "".join(part.text for part in parts)


@pytest.mark.parametrize("make", MAKERS)
def test_every_call_fits_its_tool(make: Any) -> None:
    """The model would be taught calls that the grammar of the tool's schema does not allow."""
    rng = random.Random(2)
    for _ in range(200):
        ability: Ability = make(rng)
        schema = ability.tool.definition["function"]["parameters"]
        asked = ability.ask(rng)
        assert jsonschema_rs.is_valid(schema, asked.arguments), (schema, asked)
        names = [parameter.name for parameter in ability.tool.parameters]
        assert [name for name in names if name in asked.arguments] == list(asked.arguments), "a grammar keeps the order"
        assert re.fullmatch(r"[A-Za-z0-9_]+", ability.tool.name)
        for value in asked.arguments.values():
            words = re.findall(r"\w+", str(value))
            hidden = [word for word in words if word not in asked.text and word.lower() not in asked.text.lower()]
            assert not hidden or hidden[0] in ("add", "subtract", "multiply", "divide"), "nobody could know it"


def test_an_answer_says_what_the_tool_said() -> None:
    """The model would learn to answer from anything but the result."""
    rng = random.Random(3)
    for _ in range(500):
        ability, asked = asked_of(rng, abilities_of(rng))
        *_, answer = called(rng, ability, asked)
        try:
            result = json.loads(asked.result)
        except ValueError:
            result = asked.result
        told = list(result.values()) if isinstance(result, dict) else [asked.result]
        assert any(str(one) in answer.text for one in told) or answer.text.startswith("The tool failed: ")


def test_most_results_of_sums_are_right_and_some_are_not() -> None:
    """Chats would look foolish; or the model would not learn that it has to read the result."""
    rng = random.Random(4)
    right = Counter[bool]()
    for _ in range(600):
        asked = calculator(rng).ask(rng)
        numbers = [Fraction(str(value)) for value in asked.arguments.values() if not isinstance(value, str)]
        if len(numbers) == 2 and "+" in asked.text:
            shown = re.findall(r"-?\d+(?:\.\d+)?", asked.answer)[0]
            right[abs(Fraction(shown) - sum(numbers)) < Fraction(1, 1000)] += 1
    assert right[True] > 2 * right[False] > 0


def test_one_tool_fits_a_question_at_most() -> None:
    """Two right calls would both be learnt, each half; or a call would be declined that a tool is there for."""
    rng = random.Random(5)
    declined = 0
    for _ in range(1000):
        text = "".join(part.text for part in tool_chat(rng))
        tools = re.findall(r"^(\w+)\(", text, re.MULTILINE)
        assert len(tools) == len(set(tools))
        assert all(name in tools for name in re.findall(r'<tool_call>\{"name": "(\w+)"', text))
        for asked in re.findall(rf"<\|user\|>([^<]*)<\|assistant\|>{DECLINED}", text):
            declined += 1
            intro = text.partition("<|user|>")[0].lower()
            sought = re.findall(r"\b(?:the|what) (\w+) (?:of|in|is)\b", asked.lower())
            assert not [word for word in sought if f"_{word}" in intro or f"the {word} " in intro], (intro, asked)
    assert declined > 100


def test_no_question_to_measure_by_is_trained_on() -> None:
    """The table of tools would measure memory."""
    rng = random.Random(6)
    asked = {
        text
        for _ in range(1500)
        for text in re.findall(r"<\|user\|>([^<]*)<\|assistant\|><tool_call>", "".join(p.text for p in tool_chat(rng)))
    }
    assert len(asked) > 1000
    assert not [text for text in asked if held_out(text)]
    prompts = tool_prompts(4)
    assert Counter(prompt["category"] for prompt in prompts).total() == 4 * 7
    for prompt in prompts:
        first = re.findall(r"<\|user\|>([^<]+)<\|assistant\|>", prompt["prompt"])[0]
        assert held_out(first), first


def test_the_chats_stay_the_same() -> None:
    """The published weights could not be made again."""
    rng = random.Random(7)
    sample = [[tuple(part) for part in tool_chat(rng)] for _ in range(300)]
    assert (
        hashlib.sha256(repr(sample).encode()).hexdigest()
        == "1b5813ba26b26795b64fc1f82ac6e871a07a33858e38c20c4f2e23bbb2d9739e"
    )
