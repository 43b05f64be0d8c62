"""How likely a model finds each of some answers: the chain rule over the tokens of each, asked for once a beginning.

The probability of an answer is the product of its tokens' probabilities, each given those before it. Answers of one
question that begin alike share what they have in common, so a question with answers of one token each takes one look at
one place. Where one answer is the beginning of another, each counts together with the end of the answer behind it:
otherwise "no" would have the probability of "not sure", too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

Tokens = tuple[int, ...]
END = -1
"""Stands for the end of an answer, by whichever token."""


class Look(NamedTuple):
    """A place at which probabilities are wanted."""

    question: int
    path: Tokens
    """Tokens of the answer before that place."""
    wanted: Tokens
    """Token ids, or END."""
    room: int
    """Tokens that the longest of the question's answers has from that place on."""


def paths_of(answers: Sequence[Tokens]) -> list[Tokens]:
    """The answers' tokens as they are scored. answers: each another one, none empty."""
    known = set(answers)
    begins_another = any(answer[:length] in known for answer in answers for length in range(1, len(answer)))
    return [(*answer, END) for answer in answers] if begins_another else list(answers)


def looks_of(question: int, paths: Sequence[Tokens]) -> list[Look]:
    """The places to look at for a question, each once, its first place first."""
    longest = max(map(len, paths))
    wanted: dict[Tokens, dict[int, None]] = {}
    for path in paths:
        for place, token in enumerate(path):
            wanted.setdefault(path[:place], {})[token] = None
    return [Look(question, begun, tuple(tokens), longest - len(begun)) for begun, tokens in wanted.items()]


def log_likelihoods(paths: Sequence[Tokens], found: Mapping[Tokens, Mapping[int, float]]) -> list[float]:
    """The natural-log probability of each path. found: by beginning and token."""
    return [math.fsum(found[path[:place]][token] for place, token in enumerate(path)) for path in paths]


def log_sum(values: Iterable[float]) -> float:
    """The logarithm of a sum of which the summands' logarithms are given."""
    given = list(values)
    most = max(given, default=-math.inf)
    return most if most == -math.inf else most + math.log(math.fsum(math.exp(value - most) for value in given))


def shares(likelihoods: Sequence[float]) -> list[float]:
    """Probabilities in proportion to likelihoods, whose logarithms are given; alike where all are impossible."""
    total = log_sum(likelihoods)
    if total == -math.inf:
        return [1 / len(likelihoods)] * len(likelihoods)
    return [math.exp(value - total) for value in likelihoods]
