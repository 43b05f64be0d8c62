"""Makers of questions that turn text into another form: JSON, tables and lists."""

import json
import random

from loadtest.questions.question import KNOWN, Question, Words, article


def list_json(rng: random.Random, words: Words = KNOWN) -> Question:
    """A list of things and counts, to be written as JSON."""
    items = [(item, rng.randint(2, 99)) for item in rng.sample(words.items, rng.randint(2, 3))]
    text = "Turn this list into JSON: " + ", ".join(f"{count} {item}" for item, count in items) + "."
    return Question("list to JSON", text, json.dumps([{"item": item, "count": count} for item, count in items]))


def table(rng: random.Random, words: Words = KNOWN) -> Question:
    """A list of people, to be written as a Markdown table."""
    names, cities = rng.sample(words.names, 3), rng.sample(words.cities, 3)
    rows = [(name, rng.randint(18, 80), city) for name, city in zip(names, cities, strict=True)][: rng.randint(2, 3)]
    text = "Put these people in a table: " + "; ".join(f"{name}, {age}, {city}" for name, age, city in rows) + "."
    lines = ["| Name | Age | City |", "| --- | --- | --- |", *(f"| {n} | {a} | {c} |" for n, a, c in rows)]
    return Question("table", text, "\n".join(lines))


def person_json(rng: random.Random, words: Words = KNOWN) -> Question:
    """A sentence about a person, to be written as JSON."""
    name, city, job = rng.choice(words.names), rng.choice(words.cities), rng.choice(words.jobs)
    age, a_job = rng.randint(18, 80), f"{article(job)} {job}"
    sentence = rng.choice(
        (
            f"{name}, age {age}, lives in {city} and works as {a_job}.",
            f"{name} is {age} years old, lives in {city} and is {a_job}.",
            f"{name} is {a_job} from {city}, {age} years old.",
        )
    )
    answer = json.dumps({"name": name, "age": age, "city": city, "job": job})
    return Question("sentence to JSON", f"Turn this into JSON: {sentence}", answer)


def copy(rng: random.Random, words: Words = KNOWN) -> Question:
    """A list of words, to be repeated, reversed, numbered, written as JSON or counted through."""
    chosen = rng.sample(words.others, rng.randint(3, 5))
    listed = ", ".join(chosen)
    kind = rng.randrange(5)
    if kind == 0:
        text, answer = f"Write this as a JSON list: {listed}.", json.dumps(chosen)
    elif kind == 1:
        text = f"Write these words as a numbered list: {listed}."
        answer = "\n".join(f"{i}. {word}" for i, word in enumerate(chosen, 1))
    elif kind == 2:
        text, answer = f"Reverse this list: {listed}.", ", ".join(reversed(chosen)) + "."
    elif kind == 3:
        i = rng.randint(1, len(chosen))
        text, answer = f"Which word is number {i} in this list: {listed}?", f"Word number {i} is {chosen[i - 1]}."
    else:
        text, answer = f"Repeat these words: {listed}.", listed + "."
    return Question("list operation", text, answer)
