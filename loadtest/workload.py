"""Workloads: prompts from a file, from a shape or from the built-in questions, and Poisson arrival times."""

import json
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from loadtest.questions.categories import CHECKABLE, questions

Spread = Literal["fixed", "uniform", "lognormal"]

_FILLER = (
    "the of and to in is that it was for on are as with his they at be this from have or by one had not but what all "
    "were when we there can an your which their said if do will each about how up out them then she many some so these "
    "would other into has more her two like him see time could no make than first been its who now people my made over "
    "did down only way find use may water long little very after words called just where most know"
)


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to ask. Exactly one of `text`, `token_ids` and `messages` is set."""

    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    messages: tuple[dict[str, Any], ...] | None = None
    max_tokens: int | None = None
    """None: the run's own setting."""
    answers: tuple[str, ...] = ()
    """The right answers; empty where there is none to check."""
    category: str = ""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """Lengths, in tokens, of a synthetic workload."""

    input_tokens: int
    output_tokens: int
    spread: Spread = "fixed"
    width: float = 0.5
    """uniform: half-width as a share of the mean. lognormal: the standard deviation of the logarithm. Fixed: unused."""
    token_ids: bool = False
    """Prompts are random token ids (exact length) rather than words (about one token a word; `usage` tells)."""
    first_id: int = 16
    last_id: int = 1000
    """Token ids are drawn from [first_id, last_id]; the first few ids of a vocabulary are often control tokens."""


def lengths(mean: int, spread: Spread, width: float, rng: random.Random) -> int:
    """Draw one length in tokens, at least 1; the distribution's mean is `mean` for every spread."""
    if spread == "fixed":
        drawn = float(mean)
    elif spread == "uniform":
        drawn = rng.uniform(mean * (1 - width), mean * (1 + width))
    elif spread == "lognormal":
        drawn = rng.lognormvariate(math.log(mean) - width * width / 2, width)
    else:
        raise ValueError(f"Unknown length distribution '{spread}'. Valid values: fixed, uniform, lognormal.")
    return max(1, round(drawn))


def shape_prompts(shape: Shape, seed: int) -> Iterator[Prompt]:
    """Endless synthetic prompts; the same seed gives the same prompts."""
    rng, words = random.Random(seed), _FILLER.split()
    while True:
        n = lengths(shape.input_tokens, shape.spread, shape.width, rng)
        limit = lengths(shape.output_tokens, shape.spread, shape.width, rng)
        if shape.token_ids:
            ids = tuple(rng.randint(shape.first_id, shape.last_id) for _ in range(n))
            yield Prompt(token_ids=ids, max_tokens=limit)
        else:
            yield Prompt(text=" ".join(rng.choices(words, k=n)), max_tokens=limit)


def domain_prompts(seed: int, categories: Sequence[str] = CHECKABLE) -> Iterator[Prompt]:
    """Endless questions of the built-in model's domain; the same seed gives the same questions.

    Raises ValueError on an unknown category, at once.
    """
    return (
        Prompt(text=question.text, answers=(question.answer,) if question.answer else (), category=question.category)
        for question in questions(seed, categories)
    )


def load_prompts(path: Path) -> list[Prompt]:
    """Read a JSONL file of objects (`prompt` or `messages`; optionally `answer`, `max_tokens`, `category`), or a text
    file with one prompt a line. Raises ValueError that names the line, OSError when the file cannot be read."""
    lines = [(n, line) for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if line.strip()]
    if not lines:
        raise ValueError(f"{path} holds no prompts.")
    if path.suffix not in (".jsonl", ".json", ".ndjson"):
        return [Prompt(text=line) for _, line in lines]
    prompts = []
    for number, line in lines:
        try:
            prompts.append(_prompt(json.loads(line)))
        except (ValueError, TypeError, msgspec.ValidationError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    return prompts


def _prompt(row: Any) -> Prompt:
    if isinstance(row, str):
        return Prompt(text=row)
    if not isinstance(row, dict) or ("prompt" in row) == ("messages" in row):
        raise ValueError("each line must be an object with either 'prompt' or 'messages'")
    prompt, answer = row.get("prompt"), row.get("answer", ())
    fields = {
        "text": prompt if isinstance(prompt, str) else None,
        "token_ids": prompt if isinstance(prompt, list) else None,
        "messages": row.get("messages"),
        "max_tokens": row.get("max_tokens"),
        "answers": [answer] if isinstance(answer, str) else answer,
        "category": row.get("category", ""),
    }
    if fields["text"] is None and fields["token_ids"] is None and fields["messages"] is None:
        raise ValueError("'prompt' must be a string or a list of token ids, 'messages' a list of messages")
    return msgspec.convert(fields, Prompt)


def cycled(prompts: Sequence[Prompt], seed: int) -> Iterator[Prompt]:
    """Endless prompts of a file, shuffled once by `seed`, then round and round."""
    order = list(prompts)
    random.Random(seed).shuffle(order)
    while True:
        yield from order


def poisson_arrivals(rate: float, seed: int) -> Iterator[float]:
    """Endless arrival times in seconds from 0, `rate` a second on average; the same seed gives the same times."""
    if rate <= 0:
        raise ValueError(f"The arrival rate must be greater than 0, not {rate}.")
    rng = random.Random(seed)
    now = 0.0
    while True:
        now += rng.expovariate(rate)
        yield now
