"""Maker of requests for short Python functions."""

import random
from collections.abc import Sequence

from loadtest.questions.question import KNOWN, Question, Words

_SERIES = ["ages", "items", "numbers", "prices", "scores", "values"]
_MAPS = {"square": "x * x", "cube": "x * x * x", "double": "x + x", "negate": "-x"}


def code(rng: random.Random, words: Words = KNOWN) -> Question:
    """A request for a short Python function."""
    series, kind = rng.choice(_SERIES), rng.randrange(4)
    if kind == 0:
        verb, expression = rng.choice(list(_MAPS.items()))
        text = f"Write a function that can {verb} the {series}."
        body = [f"return [{expression} for x in {series}]"]
        return Question("code", text, _function(f"{verb}_{series}", series, body))
    if kind == 1:
        limit = rng.randint(2, 50)
        body = [f"return [x for x in {series} if x > {limit}]"]
        text = f"Write a function that filters the {series} greater than {limit}."
        return Question("code", text, _function(f"filter_{series}", series, body))
    if kind == 2:
        name, sign = rng.choice((("largest", ">"), ("smallest", "<")))
        loop = [f"for x in {series}:", f"    if x {sign} best:", "        best = x"]
        body = [f"best = {series}[0]", *loop, "return best"]
    else:
        name, sign, zero = rng.choice((("sum", "+=", 0), ("product", "*=", 1)))
        body = [f"total = {zero}", f"for x in {series}:", f"    total {sign} x", "return total"]
    text = f"Write a function that returns the {name} of the {series}."
    return Question("code", text, _function(f"{name}_{series}", series, body))


def _function(name: str, argument: str, body: Sequence[str]) -> str:
    return "\n".join(["```python", f"def {name}({argument}):", *(f"    {line}" for line in body), "```"])
