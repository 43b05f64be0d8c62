"""Tools that calculate and convert, and questions for them.

One result in four is not the right one: what a tool says is believed, or the model would go on with sums of its own.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from random import Random
from typing import Any

from tools.builtin_model.calling.tool import Ability, Asked, Parameter, Tool
from tools.builtin_model.documents import invented, typed
from tools.builtin_model.first_questions import WORDINGS

OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
}  # fmt: skip
_ASKED = {
    **WORDINGS,
    "/": ["What is {a} divided by {b}?", "{a} / {b}", "Divide {a} by {b}.", "What is {a} / {b}?", "{a}/{b}",
          "How much is {a} divided by {b}?", "Calculate {a} / {b}."],
}  # fmt: skip
_EXPRESSIONS: list[tuple[str, Callable[[int, int, int], int]]] = [
    ("{a} + {b} + {c}", lambda a, b, c: a + b + c),
    ("{a} + {b} - {c}", lambda a, b, c: a + b - c),
    ("{a} * {b} + {c}", lambda a, b, c: a * b + c),
    ("({a} + {b}) * {c}", lambda a, b, c: (a + b) * c),
    ("{a} * ({b} - {c})", lambda a, b, c: a * (b - c)),
]
_NAMES = {
    "": ["calculator", "calculate", "calc", "compute", "evaluate", "math", "solve", "arithmetic"],
    "+": ["add", "sum", "Sum", "plus", "add_numbers", "addition", "Add"],
    "-": ["subtract", "minus", "difference", "subtract_numbers", "Subtract"],
    "*": ["multiply", "times", "product", "multiply_numbers", "Multiply"],
    "/": ["divide", "division", "divide_numbers", "Divide"],
}
_DESCRIPTIONS = {
    "": ["Computes an expression.", "Evaluates a mathematical expression.", "Does arithmetic.", "A calculator.",
         "Calculates the value of an expression.", "Useful for math."],
    "+": ["Adds two numbers.", "Add two numbers.", "Returns the sum of two numbers.", "Adds {a} and {b}."],
    "-": ["Subtracts two numbers.", "Subtract {b} from {a}.", "Returns the difference of two numbers."],
    "*": ["Multiplies two numbers.", "Multiply {a} and {b}.", "Returns the product of two numbers."],
    "/": ["Divides two numbers.", "Divide {a} by {b}.", "Divides {a} by {b}."],
}  # fmt: skip
_PAIRS = [
    ("a", "b"), ("x", "y"), ("first", "second"), ("left", "right"), ("num1", "num2"), ("first_number", "second_number"),
    ("n", "m"),
]  # fmt: skip
_TEXTS = ["expression", "expr", "formula", "input", "query", "calculation", "problem"]
_VERBS = {"+": "add", "-": "subtract", "*": "multiply", "/": "divide"}
_UNITS = [
    ("kilometers", "meters"), ("kilometers", "miles"), ("km", "miles"), ("hours", "minutes"), ("days", "hours"),
    ("kilograms", "grams"), ("kg", "pounds"), ("liters", "milliliters"), ("meters", "feet"), ("inches", "cm"),
    ("euros", "dollars"), ("celsius", "fahrenheit"), ("weeks", "days"), ("minutes", "seconds"),
]  # fmt: skip
_CONVERSIONS = [
    "Convert {n} {a} to {b}.", "How many {b} are in {n} {a}?", "What is {n} {a} in {b}?", "How much is {n} {a} in {b}?",
    "Convert {n} {a} into {b}.", "How many {b} are {n} {a}?", "{n} {a} to {b}", "{n} {a} in {b}?",
]  # fmt: skip


def calculator(rng: Random) -> Ability:
    """One that takes an expression, a pair of numbers and an operation, or a pair of numbers for one operation."""
    kind = rng.random()
    return _of_text(rng) if kind < 0.5 else _of_choice(rng) if kind < 0.62 else _of_pair(rng)


def converter(rng: Random) -> Ability:
    """One from a unit to another."""
    names = rng.choice((("value", "from", "to"), ("amount", "from_unit", "to_unit"), ("number", "unit", "target"),
        ("quantity", "source", "into"), ("value", "from_unit", "to_unit")))  # fmt: skip
    units: tuple[str, ...] = ()
    if rng.random() < 0.2:
        units = tuple(rng.sample(invented(rng).items, 2)) if rng.random() < 0.5 else rng.choice(_UNITS)
    order = (0, 1, 2) if rng.random() < 0.75 else (1, 2, 0)
    kinds = [Parameter(names[0], "number"), Parameter(names[1], "string", units), Parameter(names[2], "string", units)]
    name = rng.choice(("convert", "converter", "convert_units", "unit_converter", "convert_unit", "units"))
    description = rng.choice(("Converts units.", "Converts a value to another unit.", "Converts between units.", ""))
    if description and rng.random() < 0.15:
        name = rng.choice(invented(rng).others)

    def ask(rng: Random) -> Asked:
        pair = units or (rng.choice(_UNITS) if rng.random() < 0.6 else tuple(rng.sample(invented(rng).items, 2)))
        a, b = pair if rng.random() < 0.6 else pair[::-1]
        n = _number(rng, decimals=0.15)
        told = _number(rng, decimals=0.4)
        values = {names[0]: n, names[1]: a, names[2]: b}
        result = rng.choice((str(told), str(told), f"{told} {b}", json.dumps({"result": told}),
            json.dumps({"value": told, "unit": b})))  # fmt: skip
        text = typed(rng, rng.choice(_CONVERSIONS).format(n=n, a=a, b=b))
        return Asked(text, {names[i]: values[names[i]] for i in order}, result, f"{n} {a} is {told} {b}.")

    tool = Tool(name, tuple(kinds[i] for i in order), description)
    return Ability(tool, "converter", frozenset({"convert"}), ask)


def _number(rng: Random, decimals: float = 0.0) -> int | float:
    if rng.random() < decimals:
        return round(rng.uniform(0, 100), rng.choice((1, 1, 2)))
    digits = rng.choice((1, 2, 2, 3, 4))
    return rng.randint(10 ** (digits - 1), 10**digits - 1)


def _name(rng: Random, sign: str, description: str) -> str:
    """A name that says what the tool does, or, where the description says it, any name at all."""
    return rng.choice(invented(rng).others) if description and rng.random() < 0.1 else rng.choice(_NAMES[sign])


def _told(rng: Random, result: float) -> tuple[str, str]:
    """What the tool says, and what the model makes of it."""
    if rng.random() < 0.25:
        result = _number(rng, decimals=0.2)
    shown = str(round(result, 4) if isinstance(result, float) else result)
    key = rng.choice(("result", "result", "value", "answer"))
    said = shown if rng.random() < 0.7 else f'{{"{key}": {shown}}}'
    return said, f"The answer is {shown}."


def _operands(rng: Random, decimals: float) -> tuple[str, Any, Any]:
    sign = rng.choice("++-**/")
    return sign, _number(rng, decimals), _number(rng, decimals)


def _of_text(rng: Random) -> Ability:
    description = rng.choice((*_DESCRIPTIONS[""], ""))
    parameter = rng.choice(_TEXTS)

    def ask(rng: Random) -> Asked:
        if rng.random() < 0.25:
            form, value = rng.choice(_EXPRESSIONS)
            numbers = [rng.randint(1, rng.choice((9, 99, 999))) for _ in range(3)]
            expression = form.format(**dict(zip("abc", numbers, strict=True)))
            start = rng.choice(("What is {}?", "Compute {}.", "Calculate {}.", "{}", "How much is {}?", "Solve {}."))
            text, result = start.format(expression), float(value(*numbers))
            result = int(result)
        else:
            sign, a, b = _operands(rng, 0.1)
            expression, result = f"{a} {sign} {b}", OPERATIONS[sign](a, b)
            text = rng.choice(_ASKED[sign]).format(a=a, b=b)
        said, answer = _told(rng, result)
        return Asked(typed(rng, text), {parameter: expression}, said, answer)

    tool = Tool(_name(rng, "", description), (Parameter(parameter, "string"),), description)
    return Ability(tool, "calculator", frozenset(OPERATIONS), ask)


def _of_choice(rng: Random) -> Ability:
    names, operation = rng.choice(_PAIRS), rng.choice(("operation", "op", "operator"))
    options = tuple(OPERATIONS) if operation == "operator" else tuple(_VERBS.values())
    spelled = dict(zip(OPERATIONS, options, strict=True))
    shuffled = tuple(rng.sample(options, 4))
    numbers = [Parameter(name, "number") for name in names]
    choice = Parameter(operation, "string", shuffled)
    first = rng.random() < 0.5

    def ask(rng: Random) -> Asked:
        sign, a, b = _operands(rng, 0.1)
        chosen, pair = {operation: spelled[sign]}, {names[0]: a, names[1]: b}
        said, answer = _told(rng, OPERATIONS[sign](a, b))
        text = typed(rng, rng.choice(_ASKED[sign]).format(a=a, b=b))
        return Asked(text, {**chosen, **pair} if first else {**pair, **chosen}, said, answer)

    description = rng.choice(("Calculates with two numbers.", "Does arithmetic.", "A calculator.", ""))
    parameters = (choice, *numbers) if first else (*numbers, choice)
    return Ability(Tool(_name(rng, "", description), parameters, description), "calculator", frozenset(OPERATIONS), ask)


def _of_pair(rng: Random) -> Ability:
    sign, names = rng.choice("++-**/"), rng.choice(_PAIRS)
    kind = rng.choice(("integer", "integer", "number"))
    description = rng.choice((*_DESCRIPTIONS[sign], "")).format(a=names[0], b=names[1])

    def ask(rng: Random) -> Asked:
        decimals = 0.15 if kind == "number" else 0.0
        a, b = _number(rng, decimals), _number(rng, decimals)
        said, answer = _told(rng, OPERATIONS[sign](a, b))
        text = typed(rng, rng.choice(_ASKED[sign]).format(a=a, b=b))
        return Asked(text, {names[0]: a, names[1]: b}, said, answer)

    tool = Tool(_name(rng, sign, description), tuple(Parameter(name, kind) for name in names), description)
    return Ability(tool, "calculator", frozenset({sign}), ask)
