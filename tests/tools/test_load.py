"""The tools' arithmetic: a soak that cannot see a leak, or an overload that cannot see a miss, is worse than none."""

from __future__ import annotations

from typing import Any

import pytest

from loadtest.records import Record
from tools.decisions import Way, chat_at_once, chat_in_turn, decide, report
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


def test_questions_are_compared_by_the_medians_of_their_rounds() -> None:
    ways = [Way("decisions", decide, [1.0, 2.0, 9.0], [2.0, 4.0, 4.0]), Way("chats", chat_in_turn, [8.0], [40.0])]
    assert report(ways, 10) == [
        {"way": "decisions", "questions_per_second": 5.0, "passes_per_question": 0.4},
        {"way": "chats", "questions_per_second": 1.2, "passes_per_question": 4.0},
    ]


def test_every_way_asks_the_same_questions() -> None:
    """Else the comparison would compare tasks."""
    import json

    import httpx

    sent: list[tuple[str, dict[str, Any]]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append((request.url.path, json.loads(request.content)))
        return httpx.Response(200, json={})

    with httpx.Client(transport=httpx.MockTransport(answer), base_url="http://x") as client:
        for way in (decide, chat_in_turn, chat_at_once):
            way(client, "The owl sleeps.", ["It is day.", "It is night."])
    (path, decision), *chats = sent
    assert path == "/v1/decisions"
    asked = [question["instructions"] for question in decision["questions"]]
    for part in (chats[:2], chats[2:]):
        contents = sorted(body["messages"][0]["content"] for _, body in part)
        assert all(content.startswith(decision["input"]) for content in contents)
        assert [statement in content for statement, content in zip(asked, contents, strict=True)] == [True, True]
