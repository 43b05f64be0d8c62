"""The built-in model's domain: a seeded generator of questions whose answers can be checked letter for letter.

Each category is a function of a random source that returns one question and its one right answer, worded the way the
built-in model was taught to word it. An eighth of the questions, chosen by their hash, is held out of its training:
`held_out` tells them apart.
"""

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol


class Question(NamedTuple):
    """One question of the domain."""

    category: str
    text: str
    answer: str
    """The one right answer; empty where there is none to check."""


class Words(NamedTuple):
    """The words that questions are about: people, cities, things that one can count, and any others."""

    names: Sequence[str]
    cities: Sequence[str]
    items: Sequence[str]
    others: Sequence[str]
    jobs: Sequence[str]


class Maker(Protocol):
    """Makes one question of a category."""

    def __call__(self, rng: random.Random, words: Words = ...) -> Question: ...


def held_out(text: str) -> bool:
    """Whether the question `text` was kept out of the built-in model's training: one in eight is."""
    return hashlib.sha256(text.encode()).digest()[0] < 32


def _words(text: str) -> list[str]:
    return text.split()


_NAMES = _words(
    "Anna Ben Clara David Emma Farid Grace Hugo Ines Jonas Kira Liam Maya Noah Olga Priya Quinn Rosa Sam Tara"
)
_CITIES = _words("Athens Berlin Dublin Lisbon Madrid Oslo Paris Prague Rome Tokyo Vienna Warsaw")
_ITEMS = _words("apples books candles cards coins cookies marbles oranges pencils shells stamps stickers")
_WORDS = _words("apple chair cloud glass horse house lemon ocean paper piano queen river stone sugar tiger train")
_JOBS = _words("baker builder cook doctor driver farmer gardener nurse painter pilot singer teacher")
KNOWN = Words(_NAMES, _CITIES, _ITEMS, _WORDS, _JOBS)
_CAPITALS = {
    "Austria": "Vienna",
    "Canada": "Ottawa",
    "Chile": "Santiago",
    "China": "Beijing",
    "Cuba": "Havana",
    "Czechia": "Prague",
    "Denmark": "Copenhagen",
    "Egypt": "Cairo",
    "Finland": "Helsinki",
    "France": "Paris",
    "Germany": "Berlin",
    "Greece": "Athens",
    "Hungary": "Budapest",
    "India": "New Delhi",
    "Ireland": "Dublin",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "Kenya": "Nairobi",
    "Norway": "Oslo",
    "Peru": "Lima",
    "Poland": "Warsaw",
    "Portugal": "Lisbon",
    "Spain": "Madrid",
    "Sweden": "Stockholm",
}
_OPPOSITES = [
    *[("big", "small"), ("cold", "hot"), ("early", "late"), ("empty", "full"), ("fast", "slow"), ("hard", "soft")],
    *[("high", "low"), ("light", "dark"), ("loud", "quiet"), ("new", "old"), ("open", "closed"), ("rich", "poor")],
    *[("strong", "weak"), ("wet", "dry")],
]
_ANIMALS = {
    "ant": ("insect", "seeds", "in a nest"),
    "bee": ("insect", "nectar", "in a hive"),
    "cow": ("mammal", "grass", "in a farm"),
    "dolphin": ("mammal", "fish", "in the sea"),
    "frog": ("amphibian", "insects", "in ponds"),
    "owl": ("bird", "mice", "in the forest"),
    "penguin": ("bird", "fish", "in the cold south"),
    "shark": ("fish", "smaller fish", "in the sea"),
    "snake": ("reptile", "mice", "on dry land"),
    "wolf": ("mammal", "meat", "in the forest"),
}
_MONTHS = _words("January February March April May June July August September October November December")
_UNITS = [  # larger unit, its singular, smaller unit, smaller units in a larger one
    ("days", "day", "hours", 24),
    ("dozens", "dozen", "units", 12),
    ("hours", "hour", "minutes", 60),
    ("kilograms", "kilogram", "grams", 1000),
    ("kilometers", "kilometer", "meters", 1000),
    ("liters", "liter", "milliliters", 1000),
    ("meters", "meter", "centimeters", 100),
    ("minutes", "minute", "seconds", 60),
    ("weeks", "week", "days", 7),
    ("years", "year", "months", 12),
]
_SERIES = _words("ages items numbers prices scores values")
_THINGS = _words("bell book coin drum key kite lantern")
_MAPS = {"square": "x * x", "cube": "x * x * x", "double": "x + x", "negate": "-x"}


def _add(rng: random.Random, words: Words = KNOWN) -> Question:
    a, b = rng.randint(11, 99), rng.randint(11, 99)
    tens, ones = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
    text = rng.choice((f"Add {a} and {b}.", f"What is {a} + {b}?", f"What is {a} plus {b}?"))
    answer = (
        f"Add the tens: {a // 10 * 10} + {b // 10 * 10} = {tens}. Add the ones: {a % 10} + {b % 10} = {ones}. "
        f"Then {tens} + {ones} = {a + b}. The answer is {a + b}."
    )
    return Question("add", text, answer)


def _sub(rng: random.Random, words: Words = KNOWN) -> Question:
    b = rng.randint(11, 88)
    a = rng.randint(b + 1, 99)
    rest = a - b // 10 * 10
    text = rng.choice((f"Subtract {b} from {a}.", f"What is {a} - {b}?"))
    answer = (
        f"First take away the tens: {a} - {b // 10 * 10} = {rest}. "
        f"Then take away the ones: {rest} - {b % 10} = {a - b}. The answer is {a - b}."
    )
    return Question("sub", text, answer)


def _mul(rng: random.Random, words: Words = KNOWN) -> Question:
    a, b = rng.randint(11, 99), rng.randint(2, 9)
    tens, ones = a // 10 * 10, a % 10
    text = rng.choice((f"Multiply {a} by {b}.", f"What is {a} times {b}?", f"What is {a} * {b}?"))
    answer = (
        f"Split {a} into {tens} and {ones}. {tens} * {b} = {tens * b}. {ones} * {b} = {ones * b}. "
        f"Then {tens * b} + {ones * b} = {a * b}. The answer is {a * b}."
    )
    return Question("mul", text, answer)


def _word_problem(rng: random.Random, words: Words = KNOWN) -> Question:
    name, other = rng.sample(words.names, 2)
    item = rng.choice(words.items)
    kind = rng.randrange(3)
    if kind == 0:
        a, b = rng.randint(11, 60), rng.randint(2, 30)
        text = f"{name} has {a} {item}. {other} gives {name} {b} more. How many {item} does {name} have now?"
        steps = f"{name} starts with {a} {item}. {other} gives {b} more, so we add: {a} + {b} = {a + b}."
        return Question("word problem", text, f"{steps} {name} has {a + b} {item} now.")
    if kind == 1:
        a = rng.randint(21, 60)
        b = rng.randint(2, a - 2)
        text = f"{name} has {a} {item} and gives {b} away. How many {item} are left?"
        steps = f"{name} starts with {a} {item}. {name} gives away {b}, so we subtract: {a} - {b} = {a - b}."
        return Question("word problem", text, f"{steps} {name} has {a - b} {item} left.")
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    text = f"{name} buys {a} boxes. Each box holds {b} {item}. How many {item} does {name} have?"
    steps = f"There are {a} boxes with {b} {item} each, so we multiply: {a} * {b} = {a * b}."
    return Question("word problem", text, f"{steps} {name} has {a * b} {item}.")


def _unit(rng: random.Random, words: Words = KNOWN) -> Question:
    large, singular, small, factor = rng.choice(_UNITS)
    n = rng.randint(2, 20)
    text = rng.choice((f"Convert {n} {large} to {small}.", f"How many {small} are in {n} {large}?"))
    answer = (
        f"There are {factor} {small} in 1 {singular}, so {n} * {factor} = {n * factor}. "
        f"{n} {large} is {n * factor} {small}."
    )
    return Question("unit", text, answer)


def _list_json(rng: random.Random, words: Words = KNOWN) -> Question:
    items = [(item, rng.randint(2, 99)) for item in rng.sample(words.items, rng.randint(2, 3))]
    text = "Turn this list into JSON: " + ", ".join(f"{count} {item}" for item, count in items) + "."
    return Question("list to JSON", text, json.dumps([{"item": item, "count": count} for item, count in items]))


def _table(rng: random.Random, words: Words = KNOWN) -> Question:
    names, cities = rng.sample(words.names, 3), rng.sample(words.cities, 3)
    rows = [(name, rng.randint(18, 80), city) for name, city in zip(names, cities, strict=True)][: rng.randint(2, 3)]
    text = "Put these people in a table: " + "; ".join(f"{name}, {age}, {city}" for name, age, city in rows) + "."
    lines = ["| Name | Age | City |", "| --- | --- | --- |", *(f"| {n} | {a} | {c} |" for n, a, c in rows)]
    return Question("table", text, "\n".join(lines))


def _person_json(rng: random.Random, words: Words = KNOWN) -> Question:
    name, city, job = rng.choice(words.names), rng.choice(words.cities), rng.choice(words.jobs)
    age, article = rng.randint(18, 80), _article(job)
    sentence = rng.choice(
        (
            f"{name}, age {age}, lives in {city} and works as {article} {job}.",
            f"{name} is {age} years old, lives in {city} and is {article} {job}.",
            f"{name} is {article} {job} from {city}, {age} years old.",
        )
    )
    answer = json.dumps({"name": name, "age": age, "city": city, "job": job})
    return Question("sentence to JSON", f"Turn this into JSON: {sentence}", answer)


def _fact(rng: random.Random, words: Words = KNOWN) -> Question:
    kind = rng.randrange(4)
    if kind == 0:
        country, capital = rng.choice(list(_CAPITALS.items()))
        asked = (
            f"What is the capital of {country}?",
            f"Which city is the capital of {country}?",
            f"Name the capital of {country}.",
        )
        return Question("fact", rng.choice(asked), f"The capital of {country} is {capital}.")
    if kind == 1:
        word, other = rng.choice(_OPPOSITES)[:: rng.choice((1, -1))]
        asked = (f"What is the opposite of {word}?", f"Name the opposite of {word}.", f"Which word means not {word}?")
        return Question("fact", rng.choice(asked), f"The opposite of {word} is {other}.")
    if kind == 2:
        month = rng.randrange(12)
        now, then = _MONTHS[month], _MONTHS[(month + 1) % 12]
        asked = (f"Which month comes after {now}?", f"What month follows {now}?", f"Name the month after {now}.")
        return Question("fact", rng.choice(asked), f"The month after {now} is {then}.")
    animal, (family, food, home) = rng.choice(list(_ANIMALS.items()))
    named = f"{_article(animal)} {animal}"
    asked = (f"What is {named}?", f"What do you know about {named}?", f"Tell me about {named}.")
    answer = f"{named[0].upper()}{named[1:]} is {_article(family)} {family}. It eats {food} and it lives {home}."
    return Question("fact", rng.choice(asked), answer)


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def _copy(rng: random.Random, words: Words = KNOWN) -> Question:
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


def _code(rng: random.Random, words: Words = KNOWN) -> Question:
    series, kind = rng.choice(_SERIES), rng.randrange(4)
    if kind == 0:
        verb, expression = rng.choice(list(_MAPS.items()))
        text = f"Write a function that can {verb} the {series}."
        body = [f"return [{expression} for x in {series}]"]
        return Question("code", text, _function(f"{verb}_{series}", series, body))
    if kind == 1:
        limit = rng.randint(2, 50)
        body = [f"return [x for x in {series} if x > {limit}]"]
        text = f"Write a function that filters the {series} greater than {limit}."
        return Question("code", text, _function(f"filter_{series}", series, body))
    if kind == 2:
        name, sign = rng.choice((("largest", ">"), ("smallest", "<")))
        loop = [f"for x in {series}:", f"    if x {sign} best:", "        best = x"]
        body = [f"best = {series}[0]", *loop, "return best"]
    else:
        name, sign, zero = rng.choice((("sum", "+=", 0), ("product", "*=", 1)))
        body = [f"total = {zero}", f"for x in {series}:", f"    total {sign} x", "return total"]
    text = f"Write a function that returns the {name} of the {series}."
    return Question("code", text, _function(f"{name}_{series}", series, body))


def _function(name: str, argument: str, body: Sequence[str]) -> str:
    return "\n".join(["```python", f"def {name}({argument}):", *(f"    {line}" for line in body), "```"])


def _story(rng: random.Random, words: Words = KNOWN) -> Question:
    animal, thing = rng.choice(list(_ANIMALS)), rng.choice(_THINGS)
    return Question("story", f"Tell me a story about {_article(animal)} {animal} and a {thing}.", "")


CATEGORIES: dict[str, Maker] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "word": _word_problem,
    "unit": _unit,
    "json": _list_json,
    "person": _person_json,
    "table": _table,
    "fact": _fact,
    "list": _copy,
    "code": _code,
    "story": _story,
}
"""Every category by its short name. `story` has no single right answer: it is there for long answers under load."""

CHECKABLE = tuple(name for name in CATEGORIES if name != "story")


def questions(seed: int, categories: Sequence[str] = CHECKABLE) -> Iterator[Question]:
    """Endless questions, the categories in turn. The same seed gives the same questions in the same order.

    A question comes again only once its category has run short of others. Raises ValueError on an unknown category.
    """
    for name in categories:
        if name not in CATEGORIES:
            raise ValueError(f"Unknown category '{name}'. Valid categories: {', '.join(CATEGORIES)}.")
    return _rotate(random.Random(seed), [CATEGORIES[name] for name in categories])


def _rotate(rng: random.Random, makers: Sequence[Maker]) -> Iterator[Question]:
    seen: set[str] = set()
    while True:
        for make in makers:
            question = make(rng)
            for _ in range(30):
                if question.text not in seen:
                    break
                question = make(rng)
            seen.add(question.text)
            yield question
