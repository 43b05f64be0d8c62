"""Generated text to train on: chats, plain question-and-answer pairs, stories, JSON and code.

Half of the documents are about invented words. With closed lists of names a small model memorises the lists and never
learns to copy from the question; with words it cannot know it has to.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from loadtest.questions.categories import CATEGORIES
from loadtest.questions.question import KNOWN, Question, Words, article
from tools.builtin_model.held_out import held_out

CHAT = 0.72
"""Share of documents in the chat format; the rest is plain text, as ordinary completion prompts are."""
INVENTED = 0.55
"""Share of documents about invented words."""
_WEIGHTS = {
    "add": 10, "sub": 10, "mul": 12, "word": 15, "unit": 6, "json": 7, "person": 8, "table": 7, "fact": 10, "list": 18,
    "code": 8, "story": 6, "self": 4,
}  # fmt: skip


class Part(NamedTuple):
    """A stretch of a document."""

    text: str
    answer: bool
    """Written by the model, so trained on in full and refined by diffusion; the rest is what it is given."""


Document = list[Part]
"""Parts in order, to stand after `<|bos|>`. An `<|eos|>` ends every answer of a chat, and any other document."""

SELF_DESCRIPTION = [
    ("Who are you?", "I am the built-in model of Lightcone, a very small language model."),
    ("What is your name?", "I am called the built-in model. I come with Lightcone."),
    (
        "What can you do?",
        "I can add, subtract and multiply, write JSON, tables and short code, and tell short stories.",
    ),
    ("How do you write?", "I can write one word after another, or refine a whole block of words at once."),
    ("How big are you?", "I have about three million parameters, which is tiny for a language model."),
    ("What is Lightcone?", "Lightcone is an inference server for diffusion language models."),
    ("What is a diffusion language model?", "It starts from masks and fills in many words at once, step by step."),
    ("Hello!", "Hello! Ask me for a sum, a list, some JSON or a story."),
    ("Can you help me?", "Yes. I can do small sums, make JSON and tables, and tell short stories."),
    ("Are you a human?", "No. I am a small language model that runs on your computer."),
    ("What don't you know?", "I know nothing of the real world beyond a few facts, so do not trust me."),
]
_ANIMALS = "ant bee cow dolphin frog owl penguin shark snake wolf cat dog fox horse mouse rabbit bear duck".split()  # noqa: SIM905
_THINGS = "bell book coin drum key kite lantern map ring ball box hat letter shell".split()  # noqa: SIM905
_MOODS = ["brave", "clever", "curious", "gentle", "happy", "kind", "lonely", "quiet", "shy", "small", "young", "wise"]
_PLACES = ["forest", "river", "hill", "garden", "market", "lake", "village", "beach", "bridge", "field"]
_TIMES = ["morning", "evening", "summer day", "winter night", "rainy day", "spring morning"]
_TROUBLES = [
    ("But it was broken.", "mended it with care"),
    ("But it belonged to somebody else.", "gave it back"),
    ("But it was stuck under a stone.", "pulled until it came free"),
    ("But it was far too heavy.", "carried it together"),
    ("But it was covered in mud.", "washed it in the water"),
]
_ENDS = [
    "{a} and {b} were happy, and they became good friends.",
    "From that day on, {a} and {b} met every day.",
    "{a} smiled and thanked {b}, and they walked home together.",
    "In the evening {a} told everybody the story of the {thing}.",
]


def story(rng: random.Random, animal: str, thing: str, hero: str | None = None) -> str:
    """A story of six sentences about `animal` and `thing`; the hero's name is up to the story unless given.

    Heroes and friends have names of their own, or a small model soon lets heroes meet themselves.
    """
    half = len(KNOWN.names) // 2
    a, b = hero or rng.choice(KNOWN.names[:half]), rng.choice(KNOWN.names[half:])
    mood, place, time = rng.choice(_MOODS), rng.choice(_PLACES), rng.choice(_TIMES)
    trouble, remedy = rng.choice(_TROUBLES)
    sentences = [
        f"Once upon a time there was {article(mood)} {mood} {animal} named {a}.",
        f"One {time}, {a} went to the {place} and found {article(thing)} {thing}.",
        trouble,
        rng.choice((f"{a} asked a friend named {b} for help.", f"Then {a} met {b} and asked for help.")),
        f"They {remedy}.",
        rng.choice(_ENDS).format(a=a, b=b, thing=thing),
    ]
    return " ".join(sentences)


def question(rng: random.Random) -> Question:
    """One question with its answer, never one that is held out."""
    category = rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
    words = invented(rng) if rng.random() < INVENTED else KNOWN
    if category == "self":
        asked, answer = rng.choice(SELF_DESCRIPTION)
        return Question("self", asked, answer)
    if category == "story":
        animal, thing = rng.choice(_ANIMALS), rng.choice(_THINGS)
        asked = f"Tell me a story about {article(animal)} {animal} and {article(thing)} {thing}."
        return Question("story", asked, story(rng, animal, thing))
    while True:
        made = CATEGORIES[category](rng, words)
        if not held_out(made.text):
            return made


def document(rng: random.Random) -> Document:
    """One document: a chat, or plain text to continue."""
    if rng.random() < CHAT:
        parts: Document = []
        for turn in range(rng.choice((1, 1, 1, 2, 2, 3))):
            made = question(rng)
            system = "<|system|>You are a helpful assistant." if turn == 0 and rng.random() < 0.08 else ""
            parts += [Part(f"{system}<|user|>{made.text}<|assistant|>", False), Part(made.answer + "<|eos|>", True)]
        return parts
    kind = rng.random()
    if kind < 0.45:
        parts = []
        for number in range(rng.choice((1, 1, 2))):
            made = question(rng)
            ask = "Q: " if number == 0 else "\nQ: "
            parts += [Part(f"{ask}{made.text}\nA:", False), Part(" " + made.answer, True)]
        parts[-1] = Part(parts[-1].text + "<|eos|>", True)
        return parts
    if kind < 0.75:
        hero = rng.choice(invented(rng).names) if rng.random() < 0.25 else None
        text = story(rng, rng.choice(_ANIMALS), rng.choice(_THINGS), hero)
        return _to_continue(rng, text, text.index(hero) + len(hero) + 1 if hero else 1)
    if kind < 0.88:
        made = CATEGORIES[rng.choice(("json", "person", "table"))](rng, invented(rng) if rng.random() < 0.5 else KNOWN)
        return _to_continue(rng, made.answer)
    code = CATEGORIES["code"](rng, KNOWN).answer
    return _to_continue(rng, code.removeprefix("```python\n").removesuffix("\n```"))


def typed(rng: random.Random, text: str) -> str:
    """`text` as people type it: a third of the time without its capital, its last sign, or with a 'please'."""
    if rng.random() < 0.67:
        return text
    text = text[0].lower() + text[1:] if rng.random() < 0.5 else text
    kind = rng.random()
    if kind < 0.5:
        return text.rstrip(".?!") or text
    if kind < 0.6 and text[-1] == "?":
        return text + "?"
    if kind < 0.7 and text[-1] == ".":
        return f"{text[:-1]}, please."
    return text


def _to_continue(rng: random.Random, text: str, least: int = 1) -> Document:
    """`text`, of which at least `least` characters are given, up to a space early in it."""
    spaces = [i for i, char in enumerate(text) if char == " " and least <= i < len(text) * 0.4]
    cut = rng.choice(spaces) if spaces else least
    return [Part(text[:cut], False), Part(text[cut:] + "<|eos|>", True)]


_ONSETS = "b br c ch d dr f fl g gr h j k l m n p pl r s sh st t tr v w z".split()  # noqa: SIM905
_VOWELS = ["a", "e", "i", "o", "u", "ai", "ea", "ee", "oo", "ou"]
_CODAS = ["", "", "", "l", "m", "n", "r", "s", "t", "ck", "nd", "rt"]


def invented(rng: random.Random) -> Words:
    """A vocabulary of words that do not exist, a handful of each sort."""

    def word(syllables: int) -> str:
        made = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(syllables))
        return made + rng.choice(_CODAS)

    def several(capital: bool = False, ending: str = "") -> list[str]:
        made = {word(rng.choice((1, 2, 2))) + ending for _ in range(10)}
        return sorted(name.capitalize() if capital else name for name in made)

    return Words(several(True), several(True), several(ending="s"), several(), several(ending="er"))
