"""A job: one HTTP generation request, checked, encoded and ready to run. Nothing in it changes any more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from engine.request import Decoding, Grammar, Request
from server.formats.parts import OutputParser

EndpointName = Literal["completions", "chat", "responses", "messages", "decisions", "fim", "infill", "edit"]
"""The endpoints that generate, by the name that metrics and the request log use."""


@dataclass(frozen=True)
class Echo:
    """A prompt as it is repeated in front of its answer. By default nothing is."""

    text: str = ""
    offsets: tuple[int, ...] = ()
    """Where in the text each token of the prompt begins; empty unless the tokens' log-probabilities are told."""


@dataclass(frozen=True)
class Choice:
    """One answer to generate."""

    request: Request
    """What the engine is asked for."""
    prompt_index: int
    """The number of its prompt among those of the HTTP request."""
    echo: Echo = Echo()

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, a suffix included."""
        return len(self.request.prompt_token_ids) + len(self.request.suffix_token_ids or ())


@dataclass(frozen=True)
class RequestedGrammar:
    """The grammar that the answers must follow. It has the right size; whether it compiles is not known yet."""

    grammar: Grammar
    param: str
    """The field of the HTTP request that it comes from."""
    sources: tuple[RequestedGrammar, ...] = ()
    """What it was made of: if it does not compile, one of them may be at fault."""


@dataclass(frozen=True)
class AnswerReading:
    """How answers are taken apart."""

    new_parser: Callable[[], OutputParser]
    """Makes the parser of one choice."""
    markers: Mapping[int, str]
    """Control tokens that the parser reads, and their spelling. Any others are no text."""


@dataclass(frozen=True)
class StreamForm:
    """How a streamed answer is written."""

    include_usage: bool = False
    """A last chunk holds the usage."""
    continuous_usage: bool = False
    """Every chunk holds the usage so far."""
    include_drafts: bool = False
    """Chunks hold the tokens that are not settled yet, beside the text that is."""
    diffusing: bool = False
    """Each chunk holds the whole current text, masks included, and replaces the last one (Mercury's form)."""


@dataclass(frozen=True)
class Job:
    """One HTTP generation request, ready to run."""

    id: str
    endpoint: EndpointName
    model: str
    """The name the client used."""
    created: int
    """Seconds since the epoch."""
    choices: tuple[Choice, ...]
    """Those of the first prompt first."""
    stops: tuple[str, ...]
    """Strings that end an answer."""
    include_stop: bool
    """The stop string that ends an answer is shown as its end."""
    end_token_ids: frozenset[int]
    """Tokens that end an answer."""
    told_token_ids: frozenset[int]
    """Of them, those that the client asked for: the answer tells which one it was."""
    grammar: RequestedGrammar | None
    seed: int
    decoding: Decoding
    """The mode that the client is told; infill is told as diffusion."""
    logprobs: int | None
    """Likeliest tokens to list beside each token; None: no log-probabilities at all."""
    stream: StreamForm | None
    """None: the answer is sent whole."""
    prompt_logprobs: int | None = None
    """Likeliest tokens to list beside each token of the prompt; None: the prompt's scores are not told."""
    continues_message: bool = False
    """A chat's answer goes on with the text of its last message."""
    skips_control_tokens: bool = True
    """Control tokens have no text."""
    tells_token_ids: bool = False
    """The answer tells the ids of the prompt's tokens and of its own."""
    tells_unmasking: bool = False
    """The answer tells how each of its tokens was unmasked."""
    names_by_id: bool = False
    """Beside log-probabilities tokens are called by their ids, not by their text."""
    tells_metrics: bool = False
    """The answer tells how long it took."""
    reading: AnswerReading | None = None
    """None: answers are text and nothing else."""
    stages: tuple[int, ...] = ()
    """How many choices are submitted together, each stage once the one before it has ended. Empty: all at once."""

    @property
    def continues_prompt(self) -> bool:
        """Answers go on where their prompts end, so that a space may begin them; else each is a text of its own."""
        return self.continues_message or self.endpoint not in ("chat", "responses", "messages", "edit")

    @property
    def requests(self) -> list[Request]:
        """The engine's requests, in the order of the choices."""
        return [choice.request for choice in self.choices]

    @property
    def first_choices(self) -> list[int]:
        """Index of the first choice of each prompt: what a prompt costs counts once, however many answers it has."""
        numbers = [choice.prompt_index for choice in self.choices]
        return [index for index, number in enumerate(numbers) if index == 0 or numbers[index - 1] != number]
