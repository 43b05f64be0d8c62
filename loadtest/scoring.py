"""Scores of decoding modes: right answers, agreement with a reference mode, tokens a pass."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from loadtest.modes import Mode
from loadtest.records import Record, wilson
from loadtest.workload import Prompt

Match = Literal["exact", "contains", "number"]

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


class CategoryScore(msgspec.Struct, frozen=True):
    """Right answers among the questions of one category."""

    correct: int
    asked: int


class ModeQuality(msgspec.Struct, frozen=True, kw_only=True):
    """One mode over all questions. A failed request counts as a wrong answer."""

    mode: Mode
    asked: int
    correct: int
    exact_share: float | None
    """Right answers over questions that have one. None when none has."""
    interval: tuple[float, float]
    """The share's 95 % Wilson interval."""
    agreement: float | None
    """The share of questions answered with the very text `reference` gave. None when nothing could be compared."""
    reference: str
    tokens_per_pass: float | None
    passes: int
    completion_tokens: int
    errors: dict[str, int]
    categories: dict[str, CategoryScore]
    disagreements: list[tuple[str, str, str]]
    """Question, reference's text, this mode's text: the first few."""
    mistakes: list[tuple[str, str, str]]
    """Question, right answer, this mode's text: the first few."""


def is_right(text: str, answers: Iterable[str], match: Match = "exact") -> bool:
    """Whether a text answers one of `answers`. Outer white space never counts.

    exact: the whole text. contains: somewhere in the text. number: the text's last number equals the answer's last one.
    """
    if match == "contains":
        return any(answer.strip() in text for answer in answers)
    if match == "number":
        said = _last_number(text)
        return said is not None and any(said == _last_number(answer) for answer in answers)
    return any(answer.strip() == text.strip() for answer in answers)


def _last_number(text: str) -> float | None:
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def reference_of(modes: Sequence[Mode]) -> int:
    """Index of the mode that the others are compared with: `ar` where there is one, else the first."""
    return next((i for i, mode in enumerate(modes) if mode.decoding == "ar"), 0)


def score(
    modes: Sequence[Mode],
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[Record]],
    match: Match = "exact",
    samples: int = 5,
) -> list[ModeQuality]:
    """Score each mode's records (any order, `index` is the prompt's) against the prompts' answers and the reference.

    Questions without an answer, or that the mode was not asked before an interrupt, are left out of the share.
    """
    if not modes:
        return []
    chosen = reference_of(modes)
    reference = {record.index: record.text for record in answers[chosen] if not record.error}
    label = modes[chosen].label()
    return [
        _score_one(mode, prompts, records, reference, label, match, samples)
        for mode, records in zip(modes, answers, strict=True)
    ]


def _score_one(
    mode: Mode,
    prompts: Sequence[Prompt],
    records: Sequence[Record],
    reference: dict[int, str],
    label: str,
    match: Match,
    samples: int,
) -> ModeQuality:
    ordered = sorted(records, key=lambda record: record.index)
    categories, mistakes = _marks(prompts, ordered, match)
    compared = [record for record in ordered if not record.error and record.index in reference]
    other = [record for record in compared if record.text != reference[record.index]]
    asked = sum(category.asked for category in categories.values())
    correct = sum(category.correct for category in categories.values())
    timed = [record for record in ordered if record.passes and not record.error]
    passes = sum(record.passes or 0 for record in timed)
    tokens = sum(record.completion_tokens or 0 for record in timed)
    return ModeQuality(
        mode=mode,
        asked=asked,
        correct=correct,
        exact_share=correct / asked if asked else None,
        interval=wilson(correct, asked),
        agreement=1 - len(other) / len(compared) if compared else None,
        reference=label,
        tokens_per_pass=tokens / passes if passes else None,
        passes=passes,
        completion_tokens=tokens,
        errors=dict(Counter(record.error for record in ordered if record.error)),
        categories=categories,
        disagreements=[(question_text(prompts[r.index]), reference[r.index], r.text) for r in other[:samples]],
        mistakes=mistakes[:samples],
    )


def _marks(
    prompts: Sequence[Prompt], records: Sequence[Record], match: Match
) -> tuple[dict[str, CategoryScore], list[tuple[str, str, str]]]:
    categories: dict[str, CategoryScore] = {}
    mistakes = []
    for record in records:
        prompt = prompts[record.index]
        if not prompt.answers:
            continue
        right = not record.error and is_right(record.text, prompt.answers, match)
        old = categories.get(prompt.category, CategoryScore(0, 0))
        categories[prompt.category] = CategoryScore(old.correct + right, old.asked + 1)
        if not right:
            mistakes.append((question_text(prompt), prompt.answers[0], record.text or record.error))
    return categories, mistakes


def question_text(prompt: Prompt) -> str:
    """The question as a person would read it."""
    if prompt.messages is not None:
        return str(prompt.messages[-1].get("content", ""))
    return prompt.text if prompt.text is not None else f"{len(prompt.token_ids or ())} token ids"
