"""Makers of questions about facts, and of requests for stories."""

import random

from loadtest.questions.question import KNOWN, Question, Words, article

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
_MONTHS = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
]  # fmt: skip
_THINGS = ["bell", "book", "coin", "drum", "key", "kite", "lantern"]


def fact(rng: random.Random, words: Words = KNOWN) -> Question:
    """A capital, an opposite, a month or an animal."""
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
    named = f"{article(animal)} {animal}"
    asked = (f"What is {named}?", f"What do you know about {named}?", f"Tell me about {named}.")
    answer = f"{named[0].upper()}{named[1:]} is {article(family)} {family}. It eats {food} and it lives {home}."
    return Question("fact", rng.choice(asked), answer)


def story(rng: random.Random, words: Words = KNOWN) -> Question:
    """A request for a story; it has no single right answer."""
    animal, thing = rng.choice(list(_ANIMALS)), rng.choice(_THINGS)
    return Question("story", f"Tell me a story about {article(animal)} {animal} and a {thing}.", "")
