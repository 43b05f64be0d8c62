"""Chats with tools to measure the model by, about questions that training never saw."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from tools.builtin_model.calling.chats import (
    abilities_of,
    answered_alone,
    asked_of,
    called,
    declined,
    introduction,
)
from tools.builtin_model.calling.tool import Ability, Tool

Case = tuple[str, str]
"""What a chat holds behind its tools, and what comes next."""


class ToolPrompt(NamedTuple):
    """A prompt with tools, and the one right answer."""

    prompt: str
    answer: str
    category: str
    tools: list[Tool]


def tool_prompts(each: int, seed: int = 2) -> list[dict[str, Any]]:
    """`each` prompts of every category, the categories in turn, as `held_out_prompts` gives them."""
    return [{"prompt": p.prompt, "answer": p.answer, "category": p.category} for p in prompts_with_tools(each, seed)]


def prompts_with_tools(each: int, seed: int = 2) -> list[ToolPrompt]:
    """The prompts of `tool_prompts`, with their tools."""
    rng = Random(seed)
    prompts = []
    for _ in range(each):
        for category, make in _CASES.items():
            abilities = abilities_of(rng)
            while category in CALLED and category not in [ability.kind for ability in abilities]:
                abilities = abilities_of(rng)
            text, answer = make(rng, abilities)
            tools = [ability.tool for ability in rng.sample(abilities, len(abilities))]
            prompts.append(ToolPrompt(introduction(rng, tools) + text, answer, category, tools))
    return prompts


def _call_of(kind: str) -> Callable[[Random, list[Ability]], Case]:
    def make(rng: Random, abilities: list[Ability]) -> Case:
        fitting = [ability for ability in abilities if ability.kind == kind]
        asked, call, *_ = called(rng, *asked_of(rng, fitting, measured=True))
        return asked.text, call.text.removesuffix("<|eos|>")

    return make


def _result(rng: Random, abilities: list[Ability]) -> Case:
    *given, answer = called(rng, *asked_of(rng, abilities, measured=True))
    return "".join(part.text for part in given), answer.text.removesuffix("<|eos|>")


def _alone(make: Callable[..., Case]) -> Callable[[Random, list[Ability]], Case]:
    def case(rng: Random, abilities: list[Ability]) -> Case:
        text, answer = make(rng, abilities, measured=True)
        return f"<|user|>{text}<|assistant|>", answer

    return case


CALLED = ("calculator", "converter", "lookup", "search")
"""Categories whose answer is a call."""
_CASES: dict[str, Callable[[Random, list[Ability]], Case]] = {
    **{kind: _call_of(kind) for kind in CALLED},
    "result": _result,
    "no tool fits": _alone(declined),
    "no tool needed": _alone(answered_alone),
}
"""By category: four kinds of tools to call, a result to answer, and questions for none of the tools."""
