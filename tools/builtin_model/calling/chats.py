"""Chats in which tools are given: they are called where they fit, their results answered, and others left alone."""

from __future__ import annotations

import re
from random import Random

from loadtest.questions.categories import CATEGORIES
from tools.builtin_model.calling.arithmetic_tools import OPERATIONS, calculator, converter
from tools.builtin_model.calling.lookup_tools import clock, lookup, search
from tools.builtin_model.calling.tool import Ability, Asked, Tool
from tools.builtin_model.documents import Document, Part, question
from tools.builtin_model.first_questions import SYSTEMS, first_question
from tools.builtin_model.held_out import held_out
from tools.builtin_model.unknown_questions import UNKNOWN_ANSWER, unknown_question

DECLINED = "None of my tools can do that."
_MAKERS, _SHARES = (calculator, converter, lookup, clock, search), (32, 14, 38, 6, 10)
_FOUND = ("lookup", "search")
"""Kinds of tools whose questions a search could answer, too."""
_WRITTEN = re.compile("turn |put |write |reverse |repeat |which word |hello|hi|thank|bye|tell me a (story|joke)")
"""What questions begin with that ask for text of the model's own."""
_FAILURES = ["not found", "no such name", "timeout", "access denied", "invalid input", "division by zero"]


def tool_chat(rng: Random) -> Document:
    """A chat of one to three questions, some of which need one of the tools that it begins with."""
    abilities = abilities_of(rng)
    parts: Document = []
    for _ in range(rng.choice((1, 1, 1, 1, 2, 2, 3))):
        kind = rng.random()
        if kind < 0.64:
            parts += called(rng, *asked_of(rng, abilities))
        else:
            text, answer = declined(rng, abilities) if kind < 0.82 else answered_alone(rng, abilities)
            parts += [Part(f"<|user|>{text}<|assistant|>", False), Part(f"{answer}<|eos|>", True)]
    tools = [ability.tool for ability in rng.sample(abilities, len(abilities))]
    return [Part(introduction(rng, tools) + parts[0].text, False), *parts[1:]]


def abilities_of(rng: Random) -> list[Ability]:
    """Tools that have nothing in common."""
    number, found = rng.choice((1, 1, 2, 2, 2, 3, 3, 4)), list[Ability]()
    while len(found) < number:
        one = rng.choices(_MAKERS, _SHARES)[0](rng)
        if _is_apart(one, found):
            found.append(one)
    return found


def introduction(rng: Random, tools: list[Tool]) -> str:
    """The system message, as the chat template writes it before tools."""
    system = f"{rng.choice(SYSTEMS)}\n" if rng.random() < 0.4 else ""
    return "\n".join([f"<|system|>{system}Tools:", *(tool.line for tool in tools)])


def asked_of(rng: Random, abilities: list[Ability], *, measured: bool = False) -> tuple[Ability, Asked]:
    """One of the tools, and a question for it that is held out where it is for measuring, and only there."""
    ability = rng.choice(abilities)
    while held_out((asked := ability.ask(rng)).text) is not measured:
        pass
    return ability, asked


def called(rng: Random, ability: Ability, asked: Asked) -> Document:
    """A question, the call, its result and the answer."""
    result, answer = asked.result, asked.answer
    if rng.random() < 0.06:
        failure = rng.choice(_FAILURES)
        result, answer = rng.choice((f"Error: {failure}", f"error: {failure}")), f"The tool failed: {failure}."
    return [
        Part(f"<|user|>{asked.text}<|assistant|>", False),
        Part(f"{ability.tool.call(asked.arguments)}<|eos|>", True),
        Part(f"<|user|><tool_response>{result}</tool_response><|assistant|>", False),
        Part(f"{answer}<|eos|>", True),
    ]


def declined(rng: Random, abilities: list[Ability], *, measured: bool = False) -> tuple[str, str]:
    """A question that none of the tools fits, nor what the model knows by itself, and what it says then."""
    while True:
        if rng.random() < 0.4:
            text = unknown_question(rng)
            if _is_free(text, abilities) and held_out(text) is measured:
                return text, DECLINED
            continue
        stranger = rng.choices(_MAKERS, _SHARES)[0](rng)
        if not _is_apart(stranger, abilities) or (stranger.kind in _FOUND and _covered(abilities) >= {"search"}):
            continue
        text = asked_of(rng, [stranger], measured=measured)[1].text
        if stranger.kind != "calculator" or re.search(r"\d{3}", text):  # others it answers by itself
            return text, DECLINED


def answered_alone(rng: Random, abilities: list[Ability], *, measured: bool = False) -> tuple[str, str]:
    """A question that the model answers by itself, as if there were no tools."""
    while True:
        if measured:
            maker = CATEGORIES[rng.choice([name for name in CATEGORIES if name != "story"])]
            text, answer = maker(rng)[1:]
        else:
            text, answer = question(rng)[1:] if rng.random() < 0.5 else first_question(rng)
        if answer != UNKNOWN_ANSWER and _is_free(text, abilities) and (held_out(text) or not measured):
            return text, answer


def _covered(abilities: list[Ability]) -> frozenset[str]:
    """All that some tools are for."""
    return frozenset().union(*(ability.covers for ability in abilities))


def _is_apart(one: Ability, others: list[Ability]) -> bool:
    """Whether a tool has neither its name nor its purpose in common with others."""
    return not one.covers & _covered(others) and one.tool.name not in [other.tool.name for other in others]


def _is_free(text: str, abilities: list[Ability]) -> bool:
    """Whether a question, which was not made for any tool, cannot be meant for one of these."""
    covered, text = _covered(abilities), text.lower()
    if _WRITTEN.match(text):
        return True
    if covered & set(OPERATIONS) and re.search(r"\d", text):
        return False
    if "convert" in covered and re.search(r"convert|how (many|much)", text):
        return False
    return "search" not in covered and not covered & set(re.findall(r"\w+", text))
