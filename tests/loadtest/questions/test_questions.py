"""If these fail, a right answer of the model is marked wrong, and quality numbers say nothing."""

import ast
import hashlib
import json
import random
import re
from itertools import islice
from typing import Any

import pytest

from loadtest.questions.categories import CATEGORIES, CHECKABLE, questions
from loadtest.questions.question import Question


def of(category: str, count: int = 60) -> list[Question]:
    return list(islice(questions(1, [category]), count))


@pytest.mark.parametrize(("category", "sign"), [("add", "+"), ("sub", "-"), ("mul", "*")])
def test_every_step_of_the_arithmetic_is_true(category: str, sign: str) -> None:
    for question in of(category):
        steps = re.findall(r"(\d+) ([+*-]) (\d+) = (\d+)", question.answer)
        assert len(steps) >= 2
        for a, op, b, result in steps:
            left, right = int(a), int(b)
            assert {"+": left + right, "-": left - right, "*": left * right}[op] == int(result)
        first, second = sorted(int(n) for n in re.findall(r"\d+", question.text))
        total = {"+": first + second, "-": second - first, "*": first * second}[sign]
        assert question.answer.endswith(f"The answer is {total}.")


class Scripted(random.Random):
    """Draws the given numbers, and the first of every choice."""

    def __init__(self, *numbers: int) -> None:
        super().__init__(0)
        self.numbers = list(numbers)

    def randint(self, a: int, b: int) -> int:
        return self.numbers.pop(0)

    def choice(self, seq: Any) -> Any:
        return seq[0]


@pytest.mark.parametrize(
    ("category", "numbers", "text", "answer"),
    [
        ("add", (87, 25), "Add 87 and 25.",
         "Add the tens: 80 + 20 = 100. Add the ones: 7 + 5 = 12. Then 100 + 12 = 112. The answer is 112."),
        ("mul", (36, 6), "Multiply 36 by 6.",
         "Split 36 into 30 and 6. 30 * 6 = 180. 6 * 6 = 36. Then 180 + 36 = 216. The answer is 216."),
        ("sub", (25, 87), "Subtract 25 from 87.",
         "First take away the tens: 87 - 20 = 67. Then take away the ones: 67 - 5 = 62. The answer is 62."),
    ],
)  # fmt: skip
def test_the_wording_is_the_models_own(category: str, numbers: tuple[int, ...], text: str, answer: str) -> None:
    assert CATEGORIES[category](Scripted(*numbers)) == (category, text, answer)


def test_the_questions_stay_the_same() -> None:
    """The built-in model was trained on these wordings, and figures of other days were measured with them."""
    sample = [tuple(question) for question in islice(questions(3, list(CATEGORIES)), 600)]
    digest = "ed4f3d2e9826ad21b8116694d3fd7b64b7132a06cd7e5ac0c89c9893c4d0fafb"
    assert hashlib.sha256(repr(sample).encode()).hexdigest() == digest


def test_json_answers_are_json_and_hold_what_was_asked() -> None:
    for question in of("json"):
        items = json.loads(question.answer)
        assert question.text.endswith(", ".join(f"{item['count']} {item['item']}" for item in items) + ".")


def test_code_answers_are_python_that_does_what_was_asked() -> None:
    for question in of("code", 200):
        source = question.answer.removeprefix("```python\n").removesuffix("\n```")
        tree = ast.parse(source)
        assert isinstance(tree.body[0], ast.FunctionDef)
        assert tree.body[0].args.args[0].arg in question.text
    texts = [question.answer for question in of("code", 200)]
    assert any("best = scores[0]" in text for text in texts)


def test_categories_take_turns_and_only_stories_have_no_answer() -> None:
    seen = list(islice(questions(0, list(CATEGORIES)), 3 * len(CATEGORIES)))
    assert [question.category for question in seen[: len(CATEGORIES)]] * 3 == [question.category for question in seen]
    assert {question.category for question in seen if not question.answer} == {"story"}
    assert "story" not in CHECKABLE


def test_a_large_category_does_not_repeat_itself() -> None:
    texts = [question.text for question in of("add", 500)]
    assert len(set(texts)) == 500


def test_an_unknown_category_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(ValueError, match=r"'poetry'.*add, sub"):
        questions(0, ["poetry"])
