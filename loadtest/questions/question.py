"""A question of the domain, the words that questions are about, and the interface of what makes one."""

import random
from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Question(NamedTuple):
    """One question of the domain."""

    category: str
    text: str
    answer: str
    """The one right answer; empty where there is none to check."""


class Words(NamedTuple):
    """The words that questions are about: people, cities, things that one can count, and any others."""

    names: Sequence[str]
    cities: Sequence[str]
    items: Sequence[str]
    others: Sequence[str]
    jobs: Sequence[str]


class Maker(Protocol):
    """Makes one question of a category."""

    def __call__(self, rng: random.Random, words: Words = ...) -> Question: ...


_NAMES = [
    "Anna", "Ben", "Clara", "David", "Emma", "Farid", "Grace", "Hugo", "Ines", "Jonas", "Kira", "Liam", "Maya",
    "Noah", "Olga", "Priya", "Quinn", "Rosa", "Sam", "Tara",
]  # fmt: skip
_CITIES = [
    "Athens", "Berlin", "Dublin", "Lisbon", "Madrid", "Oslo", "Paris", "Prague", "Rome", "Tokyo", "Vienna",
    "Warsaw",
]  # fmt: skip
_ITEMS = [
    "apples", "books", "candles", "cards", "coins", "cookies", "marbles", "oranges", "pencils", "shells", "stamps",
    "stickers",
]  # fmt: skip
_WORDS = [
    "apple", "chair", "cloud", "glass", "horse", "house", "lemon", "ocean", "paper", "piano", "queen", "river",
    "stone", "sugar", "tiger", "train",
]  # fmt: skip
_JOBS = [
    "baker", "builder", "cook", "doctor", "driver", "farmer", "gardener", "nurse", "painter", "pilot", "singer",
    "teacher",
]  # fmt: skip
KNOWN = Words(_NAMES, _CITIES, _ITEMS, _WORDS, _JOBS)
"""The words that questions of a load test are about. The built-in model's training also uses invented ones."""


def article(noun: str) -> str:
    """The indefinite article that a noun takes."""
    return "an" if noun[0] in "aeiou" else "a"
