"""Questions that a newcomer types first, with their answers: greetings, small sums, short lists, stories, small talk.

The kinds of `documents` keep their own questions and answers. These add what people type without having read which
questions the model was made for. A question of no known kind is answered with what the model can do.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from loadtest.questions import arithmetic
from loadtest.questions.question import KNOWN, article
from tools.builtin_model.documents import SELF_DESCRIPTION, Document, Part, document, invented, question, story, typed
from tools.builtin_model.held_out import held_out
from tools.builtin_model.unknown_questions import UNKNOWN_ANSWER, unknown_question

Asked = tuple[str, str]
"""A question and its answer."""

_HELLO = "Hello! I am Lightcone's toy model. Ask me for a sum, a list, some JSON or a story."
_ABILITIES = (
    "I am a toy model: I can add, subtract and multiply, write JSON, lists and short code, and tell short stories."
)
_HELP = "I can do small sums, make lists, JSON and tables, and tell short stories. Try: Add 87 and 25."
_WHO = "I am the built-in model of Lightcone, a very small language model."
_NAME = "I am called the built-in model. I come with Lightcone."
_HUMAN = "No. I am a small language model that runs on your computer."
_MAKER = "I was trained by Lightcone's own recipe, on text that a program wrote."
_SIZE = "I have about three million parameters, which is tiny for a language model."
_FINE = "I am fine, thank you. I am a toy model: ask me for a sum, a list or a story."
_JOKE = "Why was six afraid of seven? Because seven ate nine."
_HAIKU = "A quiet river,\na small owl on the old bridge,\nwinter night, no wind."
_SMALL_TALK: list[tuple[str, list[str]]] = [
    (_HELLO, ["Hi", "Hi!", "Hello", "Hello!", "Hello.", "Hey", "Hey!", "Hi there", "Hello there!", "Good morning",
        "Good evening!", "Hello, world!", "Hello world", "Greetings", "Yo", "Howdy", "Test", "test", "Testing", "Ping",
        "Hello, who is there?", "Are you there?", "Hi, can we talk?", "Hello, Lightcone"]),
    (_FINE, ["How are you?", "How are you", "How are you today?", "How are you doing?", "How is it going?",
        "How do you feel?", "What's up?", "Hi, how are you?", "Hello! How are you?", "Hello, how are you today?"]),
    (_WHO, ["Who are you?", "What are you?", "Tell me about yourself.", "Introduce yourself.", "Describe yourself.",
        "What model are you?", "Which model is this?", "What is this?", "Who am I talking to?", "Who is this?",
        "What kind of model are you?", "Are you an AI?", "Hi, who are you?", "Hello! Who are you?"]),
    (_NAME, ["What is your name?", "What's your name?", "Your name?", "How are you called?", "Do you have a name?"]),
    (_ABILITIES, ["What can you do?", "What can you do for me?", "What do you do?", "What are you good at?",
        "What can I ask you?", "What can I ask?", "What are your capabilities?", "What do you know?"]),
    (_HELP, ["Help", "Help!", "Help me.", "help", "Can you help me?", "I need help.", "Please help me.", "/help",
        "How does this work?", "What should I type?", "What now?", "Usage", "?", "Give me an example."]),
    (_HUMAN, ["Are you a human?", "Are you human?", "Are you a robot?", "Are you ChatGPT?", "Are you GPT-4?",
        "Are you alive?", "Are you real?", "Are you a person?"]),
    (_MAKER, ["Who made you?", "Who created you?", "Who trained you?", "How were you made?", "How were you trained?"]),
    (_SIZE, ["How big are you?", "How many parameters do you have?", "How large are you?"]),
    ("You are welcome!", ["Thanks", "Thanks!", "Thank you.", "Thank you!", "Thank you very much!", "thx",
        "Great, thanks!", "Many thanks", "Thanks a lot!"]),
    ("Goodbye!", ["Bye", "Bye!", "Goodbye", "Goodbye!", "See you later.", "Good night", "See you!"]),
    ("Good. Ask me for a sum, a list, some JSON or a story.", ["Ok", "OK.", "Good", "Great!", "Nice", "Cool", "Wow!",
        "Yes"]),
    (_JOKE, ["Tell me a joke", "Tell me a joke.", "Tell a joke", "A joke, please.", "Do you know a joke?", "Joke",
        "Say something funny.", "Make me laugh.", "Tell me another joke.", "Tell me something funny.",
        "Know any good jokes?", "Can you tell me a joke?"]),
    (_HAIKU, ["Write a haiku", "Write a haiku.", "Write me a haiku.", "A haiku, please.", "Can you write a haiku?",
        "Haiku", "Write a haiku about winter.", "Write a haiku about the sea.", "Write a haiku about autumn.",
        "Compose a haiku.", "Write a haiku about nature.", "Write a haiku about a river.", "Write a short haiku."]),
    ("Hello!", ["Say hello", "Say hello.", "Say hello!", "Please say hello.", "Say 'hello'.", "Can you say hello?"]),
    ("Hi!", ["Say hi", "Say hi.", "Say hi!"]),
    ("The sky is blue.", ["What color is the sky?", "What colour is the sky?", "Why is the sky blue?"]),
    ("There are 7 days in a week.", ["How many days are in a week?", "How many days are there in a week?"]),
    ("There are 24 hours in a day.", ["How many hours are in a day?", "How many hours does a day have?"]),
    ("There are 12 months in a year.", ["How many months are in a year?", "How many months does a year have?"]),
    ("The capital of France is Paris.", ["What is the capital of France?", "Capital of France?",
        "What's the capital of France?", "The capital of France is", "Which city is the capital of France?"]),
    ("It starts from masks and fills in many words at once, step by step.", ["What is a diffusion language model?",
        "What's a diffusion language model?", "How does a diffusion model work?", "What is a diffusion LLM?",
        "Explain diffusion language models."]),
    ("Lightcone is an inference server for diffusion language models.", ["What is Lightcone?", "What's Lightcone?",
        "What does Lightcone do?", "Tell me about Lightcone."]),
]  # fmt: skip
WORDINGS = {
    "+": ["What is {a}+{b}?", "What is {a} + {b}?", "What's {a} plus {b}?", "What's {a}+{b}?", "{a}+{b}", "{a} + {b}",
          "{a} + {b} =", "{a}+{b}=", "{a}+{b}?", "Add {a} and {b}.", "Add {a} to {b}.", "How much is {a} plus {b}?",
          "How much is {a} + {b}?", "What is {a} plus {b}?", "Calculate {a} + {b}.", "Compute {a} + {b}.",
          "Can you add {a} and {b}?", "Please add {a} and {b}.", "{a} plus {b}", "What is the sum of {a} and {b}?",
          "Solve {a}+{b}.", "What does {a} + {b} equal?", "What do {a} and {b} make?", "{a} and {b} is what?"],
    "-": ["What is {a}-{b}?", "What is {a} - {b}?", "What's {a} minus {b}?", "{a}-{b}", "{a} - {b}", "{a} - {b} =",
          "{a}-{b}=", "How much is {a} minus {b}?", "What is {a} minus {b}?", "Subtract {b} from {a}.",
          "Calculate {a} - {b}.", "Compute {a} - {b}.", "Take {b} away from {a}.", "{a} minus {b}",
          "What is the difference of {a} and {b}?", "Please subtract {b} from {a}."],
    "*": ["What is {a}*{b}?", "What is {a} * {b}?", "What's {a} times {b}?", "{a}*{b}", "{a} * {b}", "{a} * {b} =",
          "How much is {a} times {b}?", "What is {a} times {b}?", "Multiply {a} by {b}.", "Multiply {a} and {b}.",
          "{a} times {b}", "{a} x {b}", "What is {a}x{b}?"],
}  # fmt: skip
_LISTS = {
    "fruits": ["apple", "banana", "orange", "lemon", "cherry", "pear"],
    "animals": ["dog", "cat", "horse", "owl", "fox", "bear"],
    "colours": ["red", "blue", "green", "yellow", "white", "black"],
    "colors": ["red", "blue", "green", "yellow", "white", "black"],
    "vegetables": ["carrot", "potato", "onion", "bean", "pea", "tomato"],
    "cities": ["Paris", "Rome", "Berlin", "Madrid", "Oslo", "Vienna"],
    "countries": ["France", "Italy", "Spain", "Norway", "Japan", "Chile"],
    "birds": ["owl", "duck", "eagle", "robin", "swan", "penguin"],
    "days of the week": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"],
    "months": ["January", "February", "March", "April", "May", "June"],
}
_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_STORIES = [
    "Tell me a story", "Tell me a story.", "Write a story.", "Write a short story.", "Tell a story.", "Story",
    "Tell me a short story.", "Once upon a time", "Once upon a time...", "Once upon a time there was",
    "Can you tell me a story?", "Tell me another story.", "A story, please.", "Write me a story.",
]  # fmt: skip
_PETS = [
    "dog", "cat", "horse", "rabbit", "bear", "fox", "owl", "wolf", "mouse", "dragon", "robot", "king", "princess",
    "frog",
]  # fmt: skip
_THINGS = ["ball", "book", "coin", "key", "map", "box", "hat", "bell", "ring"]
_SUBJECTS = [
    "love", "the sea", "the moon", "spring", "a dog", "my cat", "the river", "autumn", "rain", "computers", "an owl",
]  # fmt: skip
SYSTEMS = [
    "You are a helpful assistant.", "You are a helpful AI assistant.", "Be brief.", "Answer in one sentence.",
    "You are a friendly chatbot.", "You are a pirate.", "Answer briefly and politely.", "You are an expert.",
    "Be kind.", "You are a helpful, honest and harmless assistant. Answer the questions of the user.",
    "You are ChatGPT.",
]  # fmt: skip


def small_talk(rng: random.Random) -> Asked:
    """A greeting, a question about the model, or one of a few others that have one fixed answer."""
    answer, asked = rng.choice(_SMALL_TALK)
    return typed(rng, rng.choice(asked)), answer


def _with_steps(rng: random.Random, sign: str) -> Asked:
    """Numbers of two digits, answered in steps as the load test's questions are; none that is held out."""
    maker = {"+": arithmetic.add, "-": arithmetic.sub, "*": arithmetic.mul}[sign]
    while True:
        made = maker(rng)
        a, b = map(int, re.findall(r"\d+", made.text))
        if made.text.startswith("Subtract"):
            a, b = b, a
        asked = rng.choice(WORDINGS[sign]).format(a=a, b=b)
        if not held_out(made.text) and not held_out(asked):
            return typed(rng, asked), made.answer


def sum_(rng: random.Random) -> Asked:
    """A sum, difference or product, mostly of small numbers, in one of many wordings."""
    sign = rng.choices("+-*", (5, 3, 2))[0]
    if rng.random() < 0.3:
        return _with_steps(rng, sign)
    if sign == "*":
        a, b = rng.randint(0, 10), rng.randint(0, 10)
    elif rng.random() < 0.2:
        a, b = rng.randint(11, 99), rng.randint(0, 9)
    elif rng.random() < 0.5:
        a, b = rng.randint(0, 10), rng.randint(0, 10)
    else:
        a, b = rng.randint(0, 20), rng.randint(0, 10)
    if sign == "-" and rng.random() < 0.9:
        a, b = max(a, b), min(a, b)
    if sign == "+" and rng.random() < 0.5 and a <= 20:
        a, b = b, a
    return _at_once(rng, a, sign, b)


def _at_once(rng: random.Random, a: int, sign: str, b: int) -> Asked:
    """A sum, difference or product, answered without steps."""
    result = {"+": a + b, "-": a - b, "*": a * b}[sign]
    text = rng.choice(WORDINGS[sign]).format(a=a, b=b)
    return typed(rng, text), f"{a} {sign} {b} = {result}. The answer is {result}."


def list_(rng: random.Random) -> Asked:
    """Some members of a small class."""
    kind, members = rng.choice(list(_LISTS.items()))
    number = rng.choice((2, 3, 3, 3, 4, 5))
    if rng.random() < 0.2:
        number = 3
        asked = rng.choice((f"List some {kind}.", f"Name some {kind}.", f"Give me a list of {kind}.", f"List {kind}."))
    else:
        shown = rng.choice((_NUMBERS[number], str(number)))
        verb = rng.choice(
            ("List", "List", "Name", "Name", "Give me", "Tell me", "Can you list", "Can you name", "Write")
        )
        asked = f"{verb} {shown} {kind}{'?' if verb.startswith('Can') else '.'}"
    chosen = members[:number]
    return typed(rng, asked), f"{_NUMBERS[number].capitalize()} {kind}: {', '.join(chosen[:-1])} and {chosen[-1]}."


def count(rng: random.Random) -> Asked:
    """Numbers in order."""
    number = rng.choice((3, 4, 5, 5, 5, 6, 7, 8, 9, 10, 10, 10, 12, 15, 20))
    shown = _NUMBERS[number] if number <= 10 and rng.random() < 0.6 else str(number)
    first = rng.choice(("1", "one"))
    text = rng.choice((f"Count to {shown}.", f"Count from {first} to {shown}.", f"Can you count to {shown}?"))
    return typed(rng, text), ", ".join(str(i) for i in range(1, number + 1)) + "."


def tale(rng: random.Random) -> Asked:
    """A story about what was asked for, or about anything."""
    if rng.random() < 0.4:
        return typed(rng, rng.choice(_STORIES)), story(rng, rng.choice(_PETS), rng.choice(_THINGS))
    words = invented(rng)
    animal = rng.choice(words.others) if rng.random() < 0.3 else rng.choice(_PETS)
    thing = rng.choice(words.others) if rng.random() < 0.3 else rng.choice(_THINGS)
    start = rng.choice(
        ("Tell me a story", "Write a story", "Write a short story", "Tell me a tale", "Write me a story")
    )
    about = f"{article(animal)} {animal}"
    if rng.random() < 0.4:
        about += f" and {article(thing)} {thing}"
    return typed(rng, f"{start} about {about}."), story(rng, animal, thing)


def poem(rng: random.Random) -> Asked:
    """Two lines that rhyme."""
    start = rng.choice(("Write a poem", "Write me a poem", "Write a short poem", "Tell me a poem", "Make a poem"))
    if rng.random() < 0.5:
        subject, asked = "the river", f"{start}."
    else:
        subject = "the " + rng.choice(invented(rng).others) if rng.random() < 0.4 else rng.choice(_SUBJECTS)
        asked = f"{start} about {subject}."
    answer = f"I think of {subject} in the morning light,\nand I dream of {subject} in the quiet night."
    return typed(rng, asked), answer


def _unknown(rng: random.Random) -> Asked:
    return typed(rng, unknown_question(rng)), UNKNOWN_ANSWER


_MAKERS: list[tuple[Callable[[random.Random], Asked], int]] = [
    (small_talk, 26), (sum_, 26), (list_, 8), (count, 5), (tale, 8), (poem, 4), (_unknown, 30),
]  # fmt: skip


def _difficult(rng: random.Random) -> Asked:
    """One of those that are learnt last: words of few letters, counts, small sums, numbers that are too large."""
    kind = rng.randrange(4)
    if kind == 0:
        asked = rng.choice(("Hi", "Hi!", "Hi there", "Help", "Help!", "Help me.", "Hey"))
        return typed(rng, asked), _ANSWERS[asked]
    if kind == 1:
        return count(rng)
    sign = rng.choice("++-*")
    if kind == 2:
        return typed(
            rng, rng.choice(WORDINGS[sign]).format(a=rng.randint(100, 999), b=rng.randint(9, 999))
        ), UNKNOWN_ANSWER
    a, b = rng.randint(0, 10 if sign == "*" else 20), 10 if rng.random() < 0.3 else rng.randint(0, 10)
    if (sign == "-" and a < b) or (sign == "+" and rng.random() < 0.5):
        a, b = b, a
    return _at_once(rng, a, sign, b)


def first_question(rng: random.Random, difficult: float = 0.0) -> Asked:
    """One question that a newcomer types, with its answer; `difficult` is the share of those that are learnt last."""
    if difficult and rng.random() < difficult:
        return _difficult(rng)
    make = rng.choices([make for make, _ in _MAKERS], [weight for _, weight in _MAKERS])[0]
    return make(rng)


def first_document(rng: random.Random, difficult: float = 0.0) -> Document:
    """A chat about first questions, some with other questions between them, or a plain question and answer."""
    if rng.random() < 0.1:
        asked, answer = first_question(rng, difficult)
        return [Part(f"Q: {asked}\nA:", False), Part(f" {answer}<|eos|>", True)]
    parts: Document = []
    for _ in range(rng.choice((1, 1, 1, 1, 2, 3))):
        asked, answer = first_question(rng, difficult) if not parts or rng.random() < 0.75 else question(rng)[1:]
        parts += [Part(f"<|user|>{asked}<|assistant|>", False), Part(answer + "<|eos|>", True)]
    return parts


_ANSWERS = {asked: answer for answer, variants in _SMALL_TALK for asked in variants}
_REPLACED_ANSWERS = tuple(answer for asked, answer in SELF_DESCRIPTION if _ANSWERS.get(asked, answer) != answer)
"""Answers of `documents` to questions that have another answer here."""


def mixed_document(rng: random.Random, share: float, difficult: float = 0.0) -> Document:
    """A document of `first_document(difficult)` with probability `share`, else one of `documents`.

    Some chats get a system message. With a share of 0 it is a document of `documents`, from the same random numbers.
    """
    if share == 0:
        return document(rng)
    new = rng.random() < share
    while True:
        parts = first_document(rng, difficult) if new else document(rng)
        if not any(part.text.lstrip().startswith(_REPLACED_ANSWERS) for part in parts if part.answer):
            break
    if parts[0].text.startswith("<|user|>") and rng.random() < (0.3 if new else 0.1):
        system = rng.choice(SYSTEMS)
        if rng.random() < 0.25:
            system = f"Your name is {rng.choice(KNOWN.names)}. {system}"
        parts[0] = Part(f"<|system|>{system}{parts[0].text}", False)
    return parts
