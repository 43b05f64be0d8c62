"""What a newcomer types first, asked of the built-in model. If one fails, the first impression is nonsense."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from engine.request import Request
from tests.conftest import MakeEngine
from tests.engine.driving import ask, drive
from tests.reference.prompts import builtin_tokenizer
from tools.builtin_model.unknown_questions import UNKNOWN_ANSWER

FIRST = {
    "Hi": "Lightcone",
    "Hello": "Lightcone",
    "Hello!": "Lightcone",
    "How are you?": "fine",
    "Who are you?": "built-in model of Lightcone",
    "What are you?": "built-in model of Lightcone",
    "What can you do?": "add",
    "Help": "sums",
    "What is your name?": "built-in model",
    "Thanks": "welcome",
    "What is 2+2?": "The answer is 4.",
    "2+2": "The answer is 4.",
    "2 + 2 =": "The answer is 4.",
    "What's 3 plus 4?": "The answer is 7.",
    "Add 3 and 4.": "The answer is 7.",
    "How much is 7 minus 5?": "The answer is 2.",
    "What is 12 + 15?": "The answer is 27.",
    "List three fruits.": "apple, banana and orange",
    "Name three animals": "dog, cat and horse",
    "Name three colours": "red, blue and green",
    "Count to five": "1, 2, 3, 4, 5.",
    "Count to ten.": "1, 2, 3, 4, 5, 6, 7, 8, 9, 10.",
    "Say hello": "Hello!",
    "Tell me a joke": "seven ate nine",
    "Write a poem": "in the quiet night",
    "Write a haiku": "winter night",
    "Tell me a story": "Once upon a time there was",
    "Write a story about a dog.": "dog named",
    "Once upon a time": "Once upon a time there was",
    "What is the capital of France?": "Paris",
    "What is a diffusion language model?": "masks",
}
"""Questions, each with what its answer contains."""
UNKNOWN = [
    "What is the meaning of life?", "Write a Python function", "Translate hello to French", "Explain quantum physics.",
    "Why do cats purr?", "How do I bake bread?", "Who won the election?", "Can you book a flight to Rome for me?",
    "What is 123 + 456?", "How do I reset my router password?", "Give me three tips for a job interview.",
]  # fmt: skip
MIXED = {"What are you?"}
"""Has two answers in the training text; a denoising step that settles several tokens at once may mix them."""
SYSTEM = ("", "You are a helpful assistant.", "You are a friendly robot. Keep your answers short.")
WAYS = [("ar", 32), ("speculative", 32), ("diffusion", 32), ("diffusion", 8)]


def asked_in(mode: str) -> list[str]:
    """The first questions that a mode has to answer."""
    return [question for question in FIRST if mode != "diffusion" or question not in MIXED]


def asked(question: str, system: str, mode: str, block_length: int, temperature: float, seed: int) -> Request:
    text = f"<|bos|>{f'<|system|>{system}' if system else ''}<|user|>{question}<|assistant|>"
    ids = builtin_tokenizer().encode(text, add_special_tokens=False).ids
    return ask(
        f"{system}|{question}|{seed}",
        ids,
        mode,
        max_tokens=96,
        block_length=block_length,
        temperature=temperature,
        seed=seed,
    )


def answers(
    make: MakeEngine, questions: list[str], mode: str, block_length: int, temperature: float = 0.0,
    systems: tuple[str, ...] = SYSTEM, seeds: int = 1,
) -> list[tuple[str, str]]:  # fmt: skip
    """Every question after every system message, with the text of the answer."""
    engine = make(kv_cache_tokens=16_384, max_running=32, max_batch_tokens=2048)
    cases = [(question, system, seed) for question in questions for system in systems for seed in range(seeds)]
    requests = [asked(question, system, mode, block_length, temperature, seed) for question, system, seed in cases]
    found = drive(engine, requests)
    return [
        (question, builtin_tokenizer().decode(found[request.request_id].tokens))
        for (question, _, _), request in zip(cases, requests, strict=True)
    ]


@pytest.mark.parametrize(("mode", "block_length"), WAYS)
def test_first_questions_are_answered(builtin_engine: MakeEngine, mode: str, block_length: int) -> None:
    """The first thing that a newcomer sees would be nonsense."""
    given = answers(builtin_engine, asked_in(mode), mode, block_length)
    assert not [(question, answer) for question, answer in given if FIRST[question] not in answer]


@pytest.mark.parametrize(("mode", "block_length"), WAYS)
def test_other_questions_are_told_what_it_can_do(builtin_engine: MakeEngine, mode: str, block_length: int) -> None:
    """It would make up an answer to what it cannot know."""
    given = answers(builtin_engine, UNKNOWN, mode, block_length)
    assert not [(question, answer) for question, answer in given if answer != UNKNOWN_ANSWER]


@pytest.mark.parametrize("mode", ["ar", "diffusion"])
def test_first_questions_are_answered_when_sampled(builtin_engine: MakeEngine, mode: str) -> None:
    """Clients that send no temperature sample, so a newcomer would still see nonsense."""
    given = answers(builtin_engine, asked_in(mode), mode, 32, temperature=0.7, systems=("",), seeds=4)
    wrong = Counter(question for question, answer in given if FIRST[question] not in answer)
    assert wrong.total() <= 0.04 * len(given), wrong
    assert max(wrong.values(), default=0) <= 2, wrong


@pytest.mark.parametrize(("mode", "share"), [("ar", 0.94), ("diffusion", 0.85)])
def test_small_sums_are_right(builtin_engine: MakeEngine, mode: str, share: float) -> None:
    """Only the sums of the list above would be right."""
    sums = {f"What is {a}+{b}?": a + b for a in range(11) for b in range(0, 11, 2)}
    sums |= {f"{a} - {b}": a - b for a in range(1, 20, 2) for b in range(0, min(a, 10), 3)}
    given = answers(builtin_engine, list(sums), mode, 32, systems=("",))
    right = [re.search(rf"The answer is {sums[question]}\.$", answer) is not None for question, answer in given]
    assert sum(right) >= share * len(right), [pair for pair, ok in zip(given, right, strict=True) if not ok]
