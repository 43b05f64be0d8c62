"""Fifty fixed prompts of the built-in model's domain, in the chat format it was trained on."""

from __future__ import annotations

import random
from functools import cache

from tokenizers import Tokenizer

from engine.models.files import model_directory

_NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Farid", "Grace", "Hugo")
_SURNAMES = ("Costa", "Weber", "Novak", "Silva")
_CITIES = ("Berlin", "Paris", "Oslo", "Rome", "Tokyo")
_JOBS = ("nurse", "baker", "teacher", "pilot")
_ITEMS = ("apples", "stamps", "candles", "books", "coins", "shells")
_ANIMALS = ("an owl", "a fox", "a cat", "a bear")
_COUNTRIES = ("Chile", "Austria", "Japan", "Norway", "Cuba")


def _question(kind: int, rng: random.Random) -> str:
    pick, number = rng.choice, lambda: rng.randrange(11, 99)
    match kind:
        case 0:
            return f"Add {number()} and {number()}."
        case 1:
            return f"Subtract {rng.randrange(11, 40)} from {rng.randrange(50, 99)}."
        case 2:
            return f"Multiply {number()} by {rng.randrange(2, 10)}."
        case 3:
            items = rng.sample(_ITEMS, rng.randrange(2, 5))
            return f"Turn this list into JSON: {', '.join(f'{number()} {item}' for item in items)}."
        case 4:
            who = f"{pick(_NAMES)} {pick(_SURNAMES)}, age {number()}, lives in {pick(_CITIES)}"
            return f"Turn this into JSON: {who} and works as a {pick(_JOBS)}."
        case 5:
            return f"Write a function that can {pick(('square', 'double', 'sort', 'sum'))} the values."
        case 6:
            return f"Tell me a story about {pick(_ANIMALS)} and a coin."
        case 7:
            return f"What is the capital of {pick(_COUNTRIES)}?"
        case 8:
            return f"{pick(_NAMES)} has {number()} {pick(_ITEMS)} and buys {number()} more. How many are there now?"
        case _:
            return f"Sort these numbers: {', '.join(str(number()) for _ in range(rng.randrange(3, 9)))}."


def prompt_texts(count: int = 50, seed: int = 0) -> list[str]:
    """Templated prompts; ten kinds in turn."""
    rng = random.Random(seed)
    return [f"<|bos|><|user|>{_question(i % 10, rng)}<|assistant|>" for i in range(count)]


@cache
def builtin_tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(model_directory("builtin") / "tokenizer.json"))


def prompt_ids(count: int = 50, seed: int = 0) -> list[list[int]]:
    """The same as token ids of the built-in model."""
    return [builtin_tokenizer().encode(text, add_special_tokens=False).ids for text in prompt_texts(count, seed)]
