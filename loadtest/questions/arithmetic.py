"""Makers of questions about numbers: sums, word problems and units."""

import random

from loadtest.questions.question import KNOWN, Question, Words

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


def add(rng: random.Random, words: Words = KNOWN) -> Question:
    """A sum of two numbers of two digits."""
    a, b = rng.randint(11, 99), rng.randint(11, 99)
    tens, ones = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
    text = rng.choice((f"Add {a} and {b}.", f"What is {a} + {b}?", f"What is {a} plus {b}?"))
    answer = (
        f"Add the tens: {a // 10 * 10} + {b // 10 * 10} = {tens}. Add the ones: {a % 10} + {b % 10} = {ones}. "
        f"Then {tens} + {ones} = {a + b}. The answer is {a + b}."
    )
    return Question("add", text, answer)


def sub(rng: random.Random, words: Words = KNOWN) -> Question:
    """A difference of two numbers of two digits, greater than zero."""
    b = rng.randint(11, 88)
    a = rng.randint(b + 1, 99)
    rest = a - b // 10 * 10
    text = rng.choice((f"Subtract {b} from {a}.", f"What is {a} - {b}?"))
    answer = (
        f"First take away the tens: {a} - {b // 10 * 10} = {rest}. "
        f"Then take away the ones: {rest} - {b % 10} = {a - b}. The answer is {a - b}."
    )
    return Question("sub", text, answer)


def mul(rng: random.Random, words: Words = KNOWN) -> Question:
    """A product of two digits and one."""
    a, b = rng.randint(11, 99), rng.randint(2, 9)
    tens, ones = a // 10 * 10, a % 10
    text = rng.choice((f"Multiply {a} by {b}.", f"What is {a} times {b}?", f"What is {a} * {b}?"))
    answer = (
        f"Split {a} into {tens} and {ones}. {tens} * {b} = {tens * b}. {ones} * {b} = {ones * b}. "
        f"Then {tens * b} + {ones * b} = {a * b}. The answer is {a * b}."
    )
    return Question("mul", text, answer)


def word_problem(rng: random.Random, words: Words = KNOWN) -> Question:
    """A sum, a difference or a product told as a story."""
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


def unit(rng: random.Random, words: Words = KNOWN) -> Question:
    """A conversion of a number of units into smaller ones."""
    large, singular, small, factor = rng.choice(_UNITS)
    n = rng.randint(2, 20)
    text = rng.choice((f"Convert {n} {large} to {small}.", f"How many {small} are in {n} {large}?"))
    answer = (
        f"There are {factor} {small} in 1 {singular}, so {n} * {factor} = {n * factor}. "
        f"{n} {large} is {n * factor} {small}."
    )
    return Question("unit", text, answer)
