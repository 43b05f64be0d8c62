"""A conversation as `lightcone chat` keeps it: the messages, the settings, and what a line that begins with / does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from server.terminal.completion_client import Prompt
from server.terminal.parser import MODES

Message = dict[str, str]


Number = TypeVar("Number", int, float)


class CommandError(Exception):
    """A line that begins with / and cannot be carried out. The message is one line for the user."""


@dataclass
class Settings:
    """What requests ask for beside the messages. None: the server's default."""

    decoding: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    watch: bool = False
    """Answers are shown resolving in place."""


@dataclass
class Conversation:
    """The messages so far. Nothing of it is kept on the disk."""

    settings: Settings = field(default_factory=Settings)
    system: str | None = None
    messages: list[Message] = field(default_factory=list)
    """The user's and the answers to them, in turn."""

    def prompt(self, text: str) -> Prompt:
        """The request for an answer to a further message."""
        settings, first = self.settings, [{"role": "system", "content": self.system}] if self.system else []
        return Prompt(
            text=text,
            history=(*first, *self.messages),
            decoding=settings.decoding,
            temperature=settings.temperature,
            max_tokens=settings.max_tokens,
            seed=settings.seed,
        )

    def add(self, text: str, answer: str) -> None:
        """Adds a message and its answer, or as much of it as there is."""
        self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]

    def take_back(self) -> str:
        """Removes the last message and its answer. Returns the message. Raises CommandError where there is none."""
        if not self.messages:
            raise CommandError("nothing has been said yet")
        text = self.messages[-2]["content"]
        del self.messages[-2:]
        return text


class Outcome(NamedTuple):
    """What a command leads to."""

    said: str = ""
    """For the user to read."""
    ask: str | None = None
    """A message to be sent."""
    leave: bool = False


Run = Callable[[Conversation, str], Outcome]


def carry_out(conversation: Conversation, line: str) -> Outcome:
    """Carries out a line that begins with /. Raises CommandError."""
    name, _, argument = line[1:].partition(" ")
    if name not in COMMANDS:
        raise CommandError(f"no command /{name}; there are {', '.join(f'/{known}' for known in COMMANDS)}")
    return COMMANDS[name][0](conversation, argument.strip())


def _mode(conversation: Conversation, argument: str) -> Outcome:
    if argument and argument not in (*MODES, "default"):
        raise CommandError(f"/mode takes {', '.join(MODES)} or default, not {argument}")
    if argument:
        conversation.settings.decoding = None if argument == "default" else argument
    return Outcome(f"mode: {conversation.settings.decoding or 'the default of the model'}")


def _temperature(conversation: Conversation, argument: str) -> Outcome:
    conversation.settings.temperature = _number("temperature", argument, float, 0, 2)
    return Outcome(f"temperature: {_shown(conversation.settings.temperature)}")


def _max_tokens(conversation: Conversation, argument: str) -> Outcome:
    conversation.settings.max_tokens = _number("max-tokens", argument, int, 1, 2**31)
    return Outcome(f"most tokens of an answer: {_shown(conversation.settings.max_tokens)}")


def _seed(conversation: Conversation, argument: str) -> Outcome:
    conversation.settings.seed = _number("seed", argument, int, -(2**63), 2**64 - 1)
    return Outcome(f"seed: {_shown(conversation.settings.seed)}")


def _number(name: str, argument: str, kind: Callable[[str], Number], least: float, most: float) -> Number | None:
    """The number that a command was given; None for `default`, or for nothing."""
    if argument in ("", "default"):
        return None
    try:
        value = kind(argument)
    except ValueError:
        value = None
    if value is None or not least <= value <= most:
        kinds = "a whole number" if kind is int else "a number"
        raise CommandError(f"/{name} takes {kinds} from {least} to {most}, or default; not {argument}")
    return value


def _shown(value: float | None) -> str:
    return "the default of the server" if value is None else str(value)


def _system(conversation: Conversation, argument: str) -> Outcome:
    conversation.system = argument or None
    return Outcome("system message set" if argument else "no system message")


def _watch(conversation: Conversation, argument: str) -> Outcome:
    if argument not in ("", "on", "off"):
        raise CommandError(f"/watch takes on or off, not {argument}")
    settings = conversation.settings
    settings.watch = not settings.watch if not argument else argument == "on"
    return Outcome("answers resolve in place" if settings.watch else "answers are written as they settle")


def _new(conversation: Conversation, argument: str) -> Outcome:
    conversation.messages.clear()
    return Outcome("a new conversation")


def _undo(conversation: Conversation, argument: str) -> Outcome:
    conversation.take_back()
    return Outcome("the last message and its answer are taken back")


def _retry(conversation: Conversation, argument: str) -> Outcome:
    return Outcome(ask=conversation.take_back())


def _help(conversation: Conversation, argument: str) -> Outcome:
    width = max(map(len, COMMANDS)) + 1
    lines = [f"{'/' + name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return Outcome("\n".join([*lines, "", INPUT_HELP]))


INPUT_HELP = (
    'A line that ends with \\ goes on in the next one; """ begins and ends a message of several lines.\n'
    "A message that begins with / needs a space before it. Ctrl-C stops an answer, Ctrl-D leaves."
)

COMMANDS: dict[str, tuple[Run, str]] = {
    "mode": (_mode, "how to decode: auto, ar, speculative, diffusion or default"),
    "temperature": (_temperature, "0 is greedy; up to 2"),
    "max-tokens": (_max_tokens, "longest answer"),
    "seed": (_seed, "the same seed gives the same answer"),
    "system": (_system, "the message that stands before all others; empty for none"),
    "watch": (_watch, "on or off: show answers resolving in place"),
    "retry": (_retry, "ask for the last answer again"),
    "undo": (_undo, "take the last message and its answer back"),
    "new": (_new, "forget the conversation"),
    "help": (_help, "this list"),
    "quit": (lambda conversation, argument: Outcome(leave=True), "leave"),
}
"""By name: what it does, and a line about it."""
