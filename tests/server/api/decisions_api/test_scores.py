"""Likelihoods of answers. If these fail, an application acts on probabilities that are none."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.api.decisions_api.request import Question
from server.api.decisions_api.response import answer_of
from server.api.decisions_api.scores import END, Tokens, log_likelihoods, looks_of, paths_of, shares

ANSWERS = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple), min_size=2, max_size=6, unique=True)


class Language:
    """A made-up model: after any beginning one of the tokens 1 to 3, or the end."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._rows: dict[Tokens, dict[int, float]] = {}

    def row(self, begun: Tokens) -> dict[int, float]:
        if begun not in self._rows:
            weights = [self._random.uniform(0.01, 1) for _ in range(4)]
            self._rows[begun] = {
                token: weight / sum(weights) for token, weight in zip((1, 2, 3, END), weights, strict=True)
            }
        return self._rows[begun]

    def probability(self, path: Tokens) -> float:
        return math.prod(self.row(path[:place])[token] for place, token in enumerate(path))


@settings(max_examples=100, deadline=None, database=None)
@given(ANSWERS, st.integers(0, 1000))
def test_likelihoods_are_those_of_different_texts(answers: list[Tokens], seed: int) -> None:
    """Whatever begins whatever, no text counts for two answers, and each place is looked at once."""
    language, paths = Language(seed), paths_of(answers)
    assert [path[: len(answer)] for path, answer in zip(paths, answers, strict=True)] == answers
    assert not [1 for one in paths for other in paths if one is not other and other[: len(one)] == one]
    looks = looks_of(4, paths)
    assert len({look.path for look in looks}) == len(looks)
    assert looks[0].path == ()
    longest = max(map(len, paths))
    assert all(look.room == longest - len(look.path) and look.question == 4 for look in looks)
    told = {look.path: {token: math.log(language.row(look.path)[token]) for token in look.wanted} for look in looks}
    found = log_likelihoods(paths, told)
    assert [math.exp(value) for value in found] == pytest.approx([language.probability(path) for path in paths])
    assert sum(map(math.exp, found)) <= 1 + 1e-9
    assert sum(shares(found)) == pytest.approx(1)


def test_impossible_answers_are_alike() -> None:
    assert shares([-math.inf, -math.inf]) == [0.5, 0.5]
    assert shares([-math.inf, -1000.0]) == [0.0, 1.0]
    assert shares([-2000.0, -2000.0 + math.log(3)]) == pytest.approx([0.25, 0.75])


def test_answers_say_what_the_likelihoods_say() -> None:
    likelihoods = [math.log(value) for value in (0.1, 0.2, 0.1)]
    choice = answer_of(
        Question(type="choice", instructions="?", name="n", choices=[{"value": v} for v in (True, "true", "b")]),  # type: ignore[list-item]
        likelihoods,
    )
    assert (choice.name, choice.mass) == ("n", pytest.approx(0.4))
    assert [part.probability for part in choice.probabilities] == pytest.approx([0.25, 0.5, 0.25])
    assert [part.value for part in choice.probabilities] == [True, "true", "b"]
    assert (choice.choice, choice.confidence) == ("true", pytest.approx(0.5))
    score = answer_of(
        Question(type="score", instructions="?", levels=[{"label": v} for v in "abc"]),  # type: ignore[list-item]
        likelihoods,
    )
    assert score.score == pytest.approx(0.5 + 2 * 0.25)
    assert [part.value for part in score.probabilities] == [0, 1, 2]
    predicate = answer_of(Question(type="predicate", instructions="?"), likelihoods[:2])
    assert (predicate.name, predicate.probability) == (None, pytest.approx(1 / 3))
