"""Tools that look something up: a property of a thing, a property of nothing in particular, and anything at all."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from loadtest.questions.question import KNOWN, article
from tools.builtin_model.calling.tool import Ability, Asked, Parameter, Tool
from tools.builtin_model.documents import invented, typed

_PROPERTIES = [  # what is looked up, what has it
    *[(name, "city") for name in ("weather", "temperature", "time", "population", "forecast", "rain", "mayor")],
    *[(name, "country") for name in ("capital", "population", "currency", "flag", "language", "area")],
    *[(name, "person") for name in ("age", "email", "phone", "address", "job", "birthday", "height", "salary")],
    *[(name, "item") for name in ("price", "color", "weight", "size", "stock", "cost", "rating")],
    *[(name, "order") for name in ("status", "total", "date", "owner")],
    *[(name, "account") for name in ("balance", "owner", "limit")],
    *[(name, "word") for name in ("meaning", "length", "origin", "translation", "synonym")],
]
_NUMBERED = ("order", "account", "item", "user", "room")
"""Things that may be called by a number."""
_PLACES = ("city", "country", "town", "village")
_IN = ("weather", "temperature", "time", "forecast", "rain")
"""What is said to be in a place, not of it."""
_ARGUMENTS = {
    "city": ["city", "city", "location", "place", "town"], "country": ["country", "place", "nation"],
    "person": ["name", "person", "user", "employee"], "item": ["item", "product", "name", "article"],
    "order": ["order_id", "order", "id", "number"], "account": ["account_id", "account", "id", "number"],
    "word": ["word", "text", "term"],
}  # fmt: skip
_NAMES = [
    "get_{0}", "get_{0}", "get_{0}", "{0}", "find_{0}", "lookup_{0}", "{0}_lookup", "fetch_{0}", "{0}_of", "get{1}",
    "{2}_{0}", "get_{2}_{0}", "show_{0}", "get_current_{0}",
]  # fmt: skip
_DESCRIPTIONS = [
    "Get the {0} of {1}.", "Gets the {0} of {1}.", "Tells the {0} of {1}.", "Finds the {0} of {1}.",
    "Looks up the {0} of {1}.", "Returns the {0} for {1}.", "Get the {0} for a given {2}.", "The {0} of {1}.",
    "Get the current {0} for {1}.", "Get the current {0} in a given {2}.",
]  # fmt: skip
_QUESTIONS = [
    "What is the {0} {in} {1}?", "What is the {0} {in} {1}?", "What is the {0} {in} {1}?", "What's the {0} {in} {1}?",
    "Tell me the {0} {in} {1}.", "Find the {0} {in} {1}.", "Get the {0} {in} {1}.", "Give me the {0} {in} {1}.",
    "Look up the {0} {in} {1}.", "Show me the {0} {in} {1}.", "Can you tell me the {0} {in} {1}?",
    "I need the {0} {in} {1}.", "Do you know the {0} {in} {1}?",
]  # fmt: skip
_WEATHER_QUESTIONS = [
    "What's the weather like in {1}?", "What is the weather like in {1}?", "How is the weather in {1}?",
    "What's the weather in {1} today?", "How's the weather in {1}?",
]  # fmt: skip
_PLAIN_QUESTIONS = [
    "What is the {0}?", "Tell me the {0}.", "What's the {0}?", "Get the {0}.", "What {0} is it?",
]  # fmt: skip
_OPTIONS = [
    ("unit", ("celsius", "fahrenheit")), ("unit", ("C", "F")), ("format", ("short", "long")),
    ("language", ("French", "German", "Spanish")), ("unit", ("metric", "imperial")), ("day", ("today", "tomorrow")),
]  # fmt: skip
_SEARCHED = [
    "cats", "Napoleon", "Einstein", "the moon", "black holes", "Rome", "New York", "bread recipes", "jazz", "yoga",
    "the tallest mountain", "quantum physics", "World War II", "electric cars", "chess rules", "the news", "volcanoes",
]  # fmt: skip
_SEARCHES = [
    "Search for {0}.", "Search for {0}.", "Look up {0}.", "Find {0}.", "Search the web for {0}.", "Tell me about {0}.",
    "What is {0}?", "Who is {0}?", "What do you know about {0}?", "Explain {0}.", "Find out about {0}.",
]  # fmt: skip
_SKIES = ["sunny", "rain", "cloudy", "snow", "windy", "clear sky", "light rain", "fog", "storm"]


def lookup(rng: Random) -> Ability:
    """A property of the thing that a question names, perhaps in one of a few ways."""
    if rng.random() < 0.5:
        words = invented(rng)
        sought, kind = rng.choice(words.others), rng.choice((*_ARGUMENTS, words.others[0]))
    else:
        sought, kind = rng.choice(_PROPERTIES)
    numbered = kind in _NUMBERED and rng.random() < 0.6
    argument = rng.choice(_ARGUMENTS.get(kind, [kind]))
    parameter = Parameter(argument, "integer" if numbered and rng.random() < 0.7 else "string")
    extra = _extra(rng) if rng.random() < 0.25 else None
    shape = sought in _IN and kind in _PLACES

    def ask(rng: Random) -> Asked:
        thing = _thing(rng, kind, numbered)
        value: Any = int(thing) if parameter.type == "integer" else thing
        named = f"{kind} {thing}" if numbered else thing
        inside = "in" if shape else "of"
        forms = _WEATHER_QUESTIONS if sought == "weather" and rng.random() < 0.5 else _QUESTIONS
        text = rng.choice(forms).format(sought, named, **{"in": inside})
        arguments = {argument: value}
        if extra is not None and (extra.required or rng.random() < 0.5):
            arguments[extra.name] = rng.choice(extra.options)
            text = f"{text[:-1]} in {arguments[extra.name]}{text[-1]}"
        told = _value(rng, sought)
        answer = f"The {sought} {inside} {named} is {told}."
        return Asked(typed(rng, text), arguments, _said(rng, sought, {kind: value}, told), answer)

    had = argument if kind in _PLACES and rng.random() < 0.4 else kind
    description = rng.choice(_DESCRIPTIONS).format(sought, f"{article(had)} {had}", had)
    described = rng.random() < 0.75
    name = rng.choice(_NAMES).format(sought, sought.capitalize(), kind)
    if described and rng.random() < 0.15:
        name = rng.choice(invented(rng).items)
    parameters = (parameter,) if extra is None else (parameter, extra)
    return Ability(Tool(name, parameters, description if described else ""), "lookup", frozenset({sought}), ask)


def clock(rng: Random) -> Ability:
    """A property that needs no argument, such as the time."""
    sought = rng.choice(("time", "date", "news", "password", "version", "score", *invented(rng).others[:6]))
    name = rng.choice(("get_{0}", "{0}", "current_{0}", "show_{0}", "get_current_{0}")).format(sought)
    description = rng.choice(("Tells the {0}.", "Get the current {0}.", "Returns the {0}.", "")).format(sought)

    def ask(rng: Random) -> Asked:
        form = rng.choice(
            ("What is the {0}?", "Tell me the {0}.", "What's the {0}?", "Get the {0}.", "What {0} is it?")
        )
        told = _value(rng, sought)
        said = _said(rng, sought, {}, told)
        return Asked(typed(rng, form.format(sought)), {}, said, f"The {sought} is {told}.")

    return Ability(Tool(name, (), description), "lookup", frozenset({sought}), ask)


def search(rng: Random) -> Ability:
    """Anything at all, by a text."""
    parameter = rng.choice(("query", "query", "q", "text", "topic", "term", "subject"))
    name = rng.choice(("search", "web_search", "lookup", "find", "encyclopedia", "search_web", "wiki"))
    description = rng.choice(
        ("Searches the web.", "Looks something up.", "Searches an encyclopedia.", "Search the web for a text.",
         "Finds facts about a topic.", "")
    )  # fmt: skip

    def ask(rng: Random) -> Asked:
        words = invented(rng)
        about = rng.choice((rng.choice(_SEARCHED), rng.choice(words.others), rng.choice(words.names),
            " ".join(words.others[:2])))  # fmt: skip
        told = rng.choice(words.others)
        fact = rng.choice(("{0} is {1} {2}.", "{0} is found in {3}.", "{3} is the home of {0}.", "{0}: {1} {2}."))
        said = fact.format(about, article(told), told, words.cities[0])
        said = said[0].upper() + said[1:]
        return Asked(typed(rng, rng.choice(_SEARCHES).format(about)), {parameter: about}, said, said)

    return Ability(Tool(name, (Parameter(parameter, "string"),), description), "search", frozenset({"search"}), ask)


def _extra(rng: Random) -> Parameter:
    name, options = rng.choice(_OPTIONS)
    if rng.random() < 0.4:
        options = tuple(rng.sample(invented(rng).others, 2))
    return Parameter(name, "string", options, required=rng.random() < 0.5)


def _thing(rng: Random, kind: str, numbered: bool) -> str:
    """What a question asks about."""
    if numbered:
        return str(rng.randint(10, 99999))
    words = KNOWN if rng.random() < 0.3 else invented(rng)
    if kind in _PLACES:
        one = rng.choice(words.cities)
        return f"{rng.choice(('New', 'San', 'Saint'))} {one}" if rng.random() < 0.15 else one
    if kind == "person":
        one = rng.choice(words.names)
        return f"{one} {rng.choice(invented(rng).names)}" if rng.random() < 0.3 else one
    one = rng.choice(words.items if kind == "item" else words.others)
    return f"{rng.choice(words.others)} {one}" if rng.random() < 0.15 else one


def _value(rng: Random, sought: str) -> str:
    """What is found."""
    if sought in ("weather", "forecast") and rng.random() < 0.8:
        sky = rng.choice(_SKIES)
        return rng.choice((sky, f"{sky}, {rng.randint(-9, 40)} degrees", f"{rng.randint(-9, 40)} degrees and {sky}"))
    if sought == "time" and rng.random() < 0.8:
        return f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
    words = invented(rng)
    kind = rng.random()
    if kind < 0.3:
        return str(rng.randint(1, 10 ** rng.randint(1, 5)))
    if kind < 0.45:
        return f"{rng.randint(1, 999)} {rng.choice(words.items)}"
    if kind < 0.6:
        return rng.choice(words.names)
    return rng.choice(words.others) if kind < 0.85 else " ".join(words.others[:2])


def _said(rng: Random, sought: str, thing: dict[str, Any], told: str) -> str:
    """The result that says so: the bare text, or JSON."""
    if rng.random() < 0.6:
        return told
    value: Any = int(told) if told.isdigit() else told
    key = sought if rng.random() < 0.6 else "result"
    return json.dumps({**thing, key: value} if rng.random() < 0.4 else {key: value})
