"""`python -m tools.decisions`: questions about one input, asked together as decisions and each by a chat of its own.

It starts a server of the built-in model. Each way answers the same questions with the same possible answers: a request
of /v1/decisions, chats bound to a choice one after the other, and the same chats all at once. The ways take turns, and
medians are told. Every round has an input of its own, so that no way finds what another one has computed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx

from tools.measured_server import MeasuredServer

SENTENCE = "The owl has a coin, the fox has a key, and the bear keeps {number} apples. "
INSTRUCTIONS = "The bear keeps more than {number} apples."
ANSWER_TOKENS = 8


@dataclass
class Way:
    """A way to have the questions answered, and what its rounds took."""

    name: str
    ask: Callable[[httpx.Client, str, list[str]], None]
    seconds: list[float] = field(default_factory=list)
    passes: list[float] = field(default_factory=list)


def decide(client: httpx.Client, text: str, statements: list[str]) -> None:
    """All questions in one request."""
    questions = [{"type": "predicate", "instructions": statement} for statement in statements]
    _post(client, "/v1/decisions", {"input": text, "questions": questions})


def chat(client: httpx.Client, text: str, statement: str) -> None:
    """One question in a chat whose answer is yes or no."""
    content = f"{text}\n\nIs this true? {statement}\n\nAnswer with yes or no, and nothing else."
    fields = {"temperature": 0, "max_tokens": ANSWER_TOKENS, "structured_outputs": {"choice": ["yes", "no"]}}
    _post(client, "/v1/chat/completions", {"messages": [{"role": "user", "content": content}], **fields})


def chat_in_turn(client: httpx.Client, text: str, statements: list[str]) -> None:
    """One chat after the other."""
    for statement in statements:
        chat(client, text, statement)


def chat_at_once(client: httpx.Client, text: str, statements: list[str]) -> None:
    """All chats at the same time."""
    with ThreadPoolExecutor(len(statements)) as pool:
        list(pool.map(lambda statement: chat(client, text, statement), statements))


def _post(client: httpx.Client, path: str, body: dict[str, Any]) -> None:
    client.post(path, json=body).raise_for_status()


def measure(server: MeasuredServer, ways: list[Way], questions: int, sentences: int, rounds: int) -> None:
    """Runs every way once a round, after one round that does not count."""
    statements = [INSTRUCTIONS.format(number=number) for number in range(questions)]
    limits = httpx.Limits(max_connections=questions, max_keepalive_connections=questions)
    with httpx.Client(base_url=server.url, timeout=600, limits=limits, trust_env=False) as client:
        for number in range(-1, rounds):
            for place, way in enumerate(ways):
                first = (number + 1) * 1000 + place * 100
                text = "".join([SENTENCE.format(number=first + at) for at in range(sentences)])
                passes, started = server.metric("step_duration_seconds_count"), time.perf_counter()
                way.ask(client, text, statements)
                if number >= 0:
                    way.seconds.append(time.perf_counter() - started)
                    way.passes.append(server.metric("step_duration_seconds_count") - passes)


def report(ways: list[Way], questions: int) -> list[dict[str, Any]]:
    """What each way took, by question."""
    return [
        {
            "way": way.name,
            "questions_per_second": round(questions / statistics.median(way.seconds), 1),
            "passes_per_question": round(statistics.median(way.passes) / questions, 3),
        }
        for way in ways
    ]


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tools.decisions", description=__doc__, allow_abbrev=False)
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--sentences", type=int, default=6, help="length of the input")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="write the figures as JSON")
    args = parser.parse_args(argv)
    ways = [Way("decisions", decide), Way("chats in turn", chat_in_turn), Way("chats at once", chat_at_once)]
    with MeasuredServer("--calibration-seconds", "0", "--log-level", "warning") as server:
        measure(server, ways, args.questions, args.sentences, args.rounds)
    figures = report(ways, args.questions)
    if args.json:
        print(json.dumps(figures))
    else:
        for entry in figures:
            line = (
                "{way:14}  {questions_per_second:8.1f} questions a second  {passes_per_question:6.3f} passes a question"
            )
            print(line.format(**entry))
    return 0


if __name__ == "__main__":
    sys.exit(main())
