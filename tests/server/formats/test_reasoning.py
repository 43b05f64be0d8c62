"""Reasoning apart from the answer. If these fail, users read thoughts as the answer, or miss a part of it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.formats.parts import AnswerText, Part, PlainText, Thought
from server.formats.reasoning import TAGS, ReasoningParser, Thinking, recognise_reasoning
from tests.server.formats.answers import cut, parts_of

THINK = TAGS["think"]
PIECES = ["<think>", "</think>", "\n", " ", "x", "<th", "</thi", "é", "a b", "<"]


def read(text: str, thinking: Thinking, **options: bool) -> list[Part]:
    return parts_of(ReasoningParser(THINK, thinking, PlainText(), **options), [text])


@given(
    st.lists(st.sampled_from(PIECES), max_size=10).map("".join),
    st.sampled_from(Thinking),
    st.lists(st.integers(0, 4), max_size=30),
)
@settings(deadline=None, max_examples=300)
def test_it_never_matters_where_an_answer_is_cut(text: str, thinking: Thinking, widths: list[int]) -> None:
    made = ReasoningParser(THINK, thinking, PlainText())
    assert parts_of(made, cut(text, widths)) == read(text, thinking)


@pytest.mark.parametrize(
    ("thinking", "text", "parts"),
    [
        (Thinking.OPEN, "so\n</think>\n\nYes.", [Thought("so"), AnswerText("Yes.")]),
        (Thinking.OPEN, "<think>so</think>Yes.", [Thought("so"), AnswerText("Yes.")]),
        (Thinking.OPEN, "never done ", [Thought("never done")]),
        (Thinking.OPEN, "</think>Yes.</think>", [AnswerText("Yes.</think>")]),
        (Thinking.CLOSED, "<think>Yes.</think>", [AnswerText("<think>Yes.</think>")]),
        (Thinking.UNSAID, "\n<think>so</think> Yes.", [Thought("so"), AnswerText("Yes.")]),
        (Thinking.UNSAID, " Yes. <think>", [AnswerText(" Yes. <think>")]),
        (Thinking.UNSAID, "<thi", [AnswerText("<thi")]),
    ],
)
def test_what_is_reasoning(thinking: Thinking, text: str, parts: list[Part]) -> None:
    assert read(text, thinking) == parts


def test_reasoning_may_be_left_out() -> None:
    assert read("so</think>Yes.", Thinking.OPEN, tell=False) == [AnswerText("Yes.")]


def test_a_prompt_tells_whether_its_answer_begins_with_reasoning() -> None:
    states = {"<|assistant|><think>\n": Thinking.OPEN, "<think></think>": Thinking.CLOSED, "Q": Thinking.UNSAID}
    assert {prompt: THINK.state_of(prompt) for prompt in states} == states


def test_the_tags_are_those_of_the_template() -> None:
    assert recognise_reasoning("{{ '<think>\n\n</think>' }}") == THINK
    assert recognise_reasoning("[THINK]{{ x }}[/THINK]") == TAGS["mistral"]
    assert recognise_reasoning("{{ messages }}") is None
