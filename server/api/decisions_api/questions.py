"""Questions as text that a model reads, and their possible answers as text that it may write."""

from __future__ import annotations

from typing import NamedTuple

from server.api.decisions_api.request import Question
from server.http.json_codec import encode_json

YES, NO = "yes", "no"


class Asked(NamedTuple):
    """A question, ready to be asked."""

    text: str
    answers: tuple[str, ...]
    """The texts of its answers, each another one. Of a predicate: yes, then no."""


def asked(question: Question) -> Asked:
    """The question as a model is asked it."""
    text = question.text
    if question.choices is not None:
        answers = _spelled([choice.value for choice in question.choices])
        listed = _list(answers, [choice.description for choice in question.choices])
        return Asked(f"{text}\n\nAnswer with one of these, and nothing else:\n{listed}", answers)
    if question.levels is not None:
        answers = tuple([level.label for level in question.levels])
        listed = _list(answers, [level.description for level in question.levels])
        form = "Answer with one of these levels, which rise from the first to the last, and nothing else:"
        return Asked(f"{text}\n\n{form}\n{listed}", answers)
    return Asked(f"Is this true? {text}\n\nAnswer with {YES} or {NO}, and nothing else.", (YES, NO))


def _spelled(values: list[str | bool]) -> tuple[str, ...]:
    """Strings as they are and truth values as JSON; where two would be the same, the string stands in quotes."""
    truths = {_json(value) for value in values if isinstance(value, bool)}
    return tuple([_json(value) if isinstance(value, bool) or value in truths else value for value in values])


def _json(value: str | bool) -> str:
    return encode_json(value).decode()


def _list(answers: tuple[str, ...], descriptions: list[str | None]) -> str:
    lines = [
        f"- {answer}" if description is None else f"- {answer}: {description}"
        for answer, description in zip(answers, descriptions, strict=True)
    ]
    return "\n".join(lines)
