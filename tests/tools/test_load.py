"""The tools' arithmetic: a soak that cannot see a leak, or an overload that cannot see a miss, is worse than none."""

from __future__ import annotations

import pytest

from loadtest.records import Record
from tools.overload import answered
from tools.soak import MEBIBYTE, Result, body_of, growth, slope


def test_a_leak_shows_as_mebibytes_an_hour() -> None:
    leaking = [(float(at), int((100 + at * 10 / 3600) * MEBIBYTE)) for at in range(600)]
    assert slope(leaking, since=60.0) == pytest.approx(10.0, abs=0.01)
    assert slope([(at, 5 * MEBIBYTE) for at, _ in leaking], since=60.0) == 0.0
    first, last = growth(leaking, since=60.0)
    assert last - first == pytest.approx(1.2, abs=0.1)


def test_the_load_is_mixed_and_the_same_for_the_same_seed() -> None:
    import random

    bodies = [body_of(random.Random(seed)) for seed in range(200)]
    assert bodies == [body_of(random.Random(seed)) for seed in range(200)]
    assert {body["decoding"] for _, body in bodies} == {"ar", "diffusion", "speculative", "auto"}
    assert {path for path, _ in bodies} == {"/v1/completions", "/v1/chat/completions"}
    assert {body["stream"] for _, body in bodies} == {True, False}
    assert Result().lost == []


def test_goodput_counts_answers_within_the_time_alone() -> None:
    def record(end: float, error: str = "") -> Record:
        return Record(index=0, start_s=1.0, end_s=end, error=error)

    assert answered([record(2.0), record(9.5), record(1.0, "http_429")], until=10.0) == 1
