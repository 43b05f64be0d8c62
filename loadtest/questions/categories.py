"""The categories of questions, and endless seeded questions of them.

Each category is a function of a random source that returns one question and its one right answer, worded the way the
built-in model was taught to word it.
"""

import random
from collections.abc import Iterator, Sequence

from loadtest.questions import arithmetic, knowledge, python_code, structured_text
from loadtest.questions.question import Maker, Question

CATEGORIES: dict[str, Maker] = {
    "add": arithmetic.add,
    "sub": arithmetic.sub,
    "mul": arithmetic.mul,
    "word": arithmetic.word_problem,
    "unit": arithmetic.unit,
    "json": structured_text.list_json,
    "person": structured_text.person_json,
    "table": structured_text.table,
    "fact": knowledge.fact,
    "list": structured_text.copy,
    "code": python_code.code,
    "story": knowledge.story,
}
"""Every category by its short name. `story` has no single right answer: it is there for long answers under load."""

CHECKABLE = tuple(name for name in CATEGORIES if name != "story")


def questions(seed: int, categories: Sequence[str] = CHECKABLE) -> Iterator[Question]:
    """Endless questions, the categories in turn. The same seed gives the same questions in the same order.

    A question comes again only once its category has run short of others. Raises ValueError on an unknown category.
    """
    for name in categories:
        if name not in CATEGORIES:
            raise ValueError(f"Unknown category '{name}'. Valid categories: {', '.join(CATEGORIES)}.")
    return _rotate(random.Random(seed), [CATEGORIES[name] for name in categories])


def _rotate(rng: random.Random, makers: Sequence[Maker]) -> Iterator[Question]:
    seen: set[str] = set()
    while True:
        for make in makers:
            question = make(rng)
            for _ in range(30):
                if question.text not in seen:
                    break
                question = make(rng)
            seen.add(question.text)
            yield question
