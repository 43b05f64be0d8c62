"""Questions that the built-in model cannot answer, in many wordings, for it to say so."""

from __future__ import annotations

import random

from tools.builtin_model.documents import invented

UNKNOWN_ANSWER = (
    "I am a toy model of three million parameters: I can add and subtract, tell very short stories and make small "
    "lists. Try: Add 87 and 25."
)


def _split(text: str) -> list[str]:
    """Entries of `text`: those between bars, and between a bar and an end of line."""
    return text.strip().replace("\n", "|").split("|")


_TOPICS = _split("""
life|love|happiness|time|gravity|music|football|chess|history|art|money|sleep|democracy|evolution|the universe
the moon|the sun|a black hole|photosynthesis|quantum physics|relativity|machine learning|a neural network
artificial intelligence|deep learning|a transformer|a large language model|Python|JavaScript|Rust|Linux|Docker
Kubernetes|a database|the internet|recursion|an algorithm|a pointer|a hash table|blockchain|bitcoin|inflation
the stock market|climate change|DNA|a virus|the French Revolution|World War II|the Roman Empire|Shakespeare|Einstein
Napoleon|Mozart|Beethoven|Picasso|Plato|coffee|tea|bread|pizza|pasta|a cake|chocolate|a healthy breakfast|yoga|running
swimming|a good book|a movie|my job|my boss|my garden|a car|a bicycle|an airplane|a train|the weather|today|tomorrow
the news|London|New York|Berlin|Africa|Europe|China|Germany|America|Mars|the ocean|a volcano|an earthquake|a computer
a phone|an API|HTTP|JSON|SQL|a regex|attention|the meaning of life|the speed of light|the population of Earth
the tallest mountain|the longest river|the president|the king of Spain|the best language|the answer|the future
a cover letter|an email|an essay|a letter|a song|a recipe|a resume|a blog post|a speech|a plan|a to-do list|a business
my homework|my essay|this text|this code|a website|a game|a calculator|a web server|a chatbot|a sorting algorithm
binary search|quicksort|a linked list|the Fibonacci numbers
""")
_TEMPLATES = _split("""
What is {t}?|What is {t}?|What are {t}?|What's {t}?|Who is {t}?|Who was {n}?|Who is {n}?|Who wrote {n}?
Who invented {t}?|Explain {t}.|Explain {t} to me.|Explain {t} in simple terms.|Explain {t} to a five year old.
Describe {t}.|Define {t}.|Tell me about {t}.|Tell me something about {t}.|Tell me more about {t}.|Tell me a fact.
What do you think about {t}?|How does {t} work?|How do I make {t}?|How do I learn {t}?|How can I find {t}?
How do you spell {w}?|How old is {n}?|How old are you?|How tall is {n}?|How far is {t}?|How much does {t} cost?
How many people live in {n}?|How many {w}s are there?|Why is {t} important?|Why is {t} so {w}?|Why do people like {t}?
Why?|Why not?|How?|When?|When was {t} invented?|When did {n} die?|When was {n} born?|Where is {t}?|Where is {n}?
Where do you live?|Where are you?|What time is it?|What day is it?|What is the date today?|What is the weather like?
What is the weather in {n}?|What is the best {w}?|What is the meaning of {w}?|What is the meaning of life?
What is the capital of {n}?|What is the population of {n}?|What is the difference between {t} and {t2}?
Compare {t} and {t2}.|Which is better, {t} or {t2}?|What does {w} mean?|Write a Python function
Write a Python function.|Write a Python script.|Write a Python program that prints {w}.
Write a function in JavaScript.|Write some code.|Write code for {t}.|Write a program.|Write hello world in Python.
Write a Python function that makes {t}.|Write a SQL query.|Implement {t}.|Implement {t} in Python.
Fix this code: {w}({w2})|Write about {t}.|Write an essay about {t}.|Write an email to {n}.|Write a letter to {n}.
Write {t} about {t2}.|Write a song.|Write a paragraph about {t}.|Write a sentence about {t}.|Write 500 words on {t}.
Write an article on {t}.|Write something.|Translate hello to French|Translate hello to French.
Translate {w} to German.|Translate this to Spanish: {w} {w2}.|Translate "{w}" into {n}.|How do you say {w} in French?
Say {w} in German.|Do you speak French?|Do you speak {n}?|Summarize {t}.|Summarize this: {w} {w2} {w}.
Summarize this text.|Rewrite this: {w} {w2}.|Correct this sentence: {w} {w2}.|Give me a recipe for {t}.
Give me some advice.|Give me ideas for {t}.|Give me a summary of {t}.|Give me tips for {t}.|Can you explain {t}?
Can you write {t}?|Can you draw {t}?|Can you translate this?|Can you code?|Can you {w} {t}?|Do you like {t}?
Do you know {n}?|Do you know {t}?|Do you love me?|Do you dream?|Is {t} good?|Is {n} a city?|Is it true?
Should I learn {t}?|Should I buy {t}?|I like {t}.|I love you.|I am {n}.|My name is {n}.|I am tired.|I am sad today.
I want to learn {t}.|I need {t}.|I have a question about {t}.|Help me with {t}.|Help me write {t}.|Teach me {t}.
Solve x + {d} = {d2}.|What is the square root of {d}?|What is {d} divided by {d2}?|{d} / {d2}
What is {d}{d2} + {d2}{d}?|What is {d}{d2} times {d2}{d}?|Add {d}{d2} and {d2}{d}.|{d}{d2}+{d2}{d}|What is pi?
{d}0 + {d2}0|What is {d}0 + {d2}0?|What is {d}5 - {d2}?|What is {d}{d2} minus {d}?|{d}{d2}*{d2}
What is {d}% of {d2}{d}?|Is {d} prime?|List three {w}s.|List ten {w}s.|Name five {w}s.|Name three {n}s.
List the planets.|List the steps to make {t}.|Play a game.|Let us play chess.|Sing a song.|Draw a picture.
Show me {t}.|Search for {t}.|Open {n}.|Buy {t}.|Think.|Pretend to be {n}.|Act as {n}.|You are {n}.|Imagine {t}.
What if {t} was {w}?|Recommend {t}.|Suggest a name for {t}.|Who won the World Cup?|Who is the president of {n}?
Who are the best players of {t}?|What happened in {d}{d2}?|Bonjour|Hola|Guten Tag|Ciao|Bonjour, comment ça va?
¿Qué es {w}?|Was ist {w}?|Wie geht es dir?
你好|こんにちは|Привет|asdf|{w}|{w} {w2}|{w} {w2} {w}|{n}|{n} {w}?|{t}|{t}?|{d}
lorem ipsum|foo|...|!!!|What?|No|No.|Maybe|Really?|Continue.|Go on.|Are you smart?|Are you better than {n}?
What is your favorite color?|What is your favourite {w}?|What are you doing?|Say something.|Say {w}.|Repeat after me.
Tell me a secret.|Tell me everything.|Surprise me.|What is new?|Any idea?|How can I become {w}?
How would you make {t}?|What would {n} do?|What causes {t}?|What is {w} made of?|Prove {t}.|Give an example of {t}.
What are the benefits of {t}?|What are the three laws of {t}?|Outline {t}.|Plan a trip to {n}.|Classify this: {w}.
Extract the names: {n}, {w}.|What is the sentiment of this: {w} {w2}?|Is this spam: {w}?
""")
"""A question each. t and t2 are topics, w and w2 are made-up words, n is a made-up name, d and d2 have two digits."""


def unknown_question(rng: random.Random) -> str:
    """A question outside what the model knows; one in ten has two sentences."""
    text = _one(rng)
    return f"{_one(rng)} {text}" if rng.random() < 0.1 else text


def _one(rng: random.Random) -> str:
    words = invented(rng)
    topics = [rng.choice(words.others) if rng.random() < 0.3 else rng.choice(_TOPICS) for _ in range(2)]
    d, d2 = rng.randint(10, 99), rng.randint(10, 99)
    text = rng.choice(_TEMPLATES).format(
        t=topics[0], t2=topics[1], w=words.others[0], w2=words.others[1], n=rng.choice((*words.names, *words.cities)),
        d=d, d2=d2,
    )  # fmt: skip
    return text[0].upper() + text[1:] if rng.random() < 0.9 else text
