"""`lightcone chat`: a conversation in the terminal. Ctrl-C stops an answer and not the program."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack

import httpx

from server.terminal.completion_client import Answer, GenerateError
from server.terminal.connection import add_server_options, connected, exit_status, one_line
from server.terminal.conversation import COMMANDS, CommandError, Conversation, Settings, carry_out
from server.terminal.parser import MODES
from server.terminal.showing import stream, watch

FIRST, FURTHER = "> ", ". "
QUOTES = '"""'


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status."""
    arguments = make_parser().parse_args(argv)
    return exit_status(lambda runner: _chat(arguments, runner))


def make_parser() -> argparse.ArgumentParser:
    """The parser of `lightcone chat`."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="lightcone chat",
        description="A conversation in the terminal, with a running server or with the built-in model.",
        epilog="/help in the conversation lists its commands. Nothing of it is kept on the disk.",
    )
    parser.add_argument("--decoding", choices=MODES, help="decoding mode (default: the model's best exact mode)")
    parser.add_argument("--system", metavar="TEXT", help="the message that stands before all others")
    parser.add_argument("--temperature", type=float, metavar="X", help="0 is greedy (default: 1)")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="(default: what is left of the context)")
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same answers")
    parser.add_argument(
        "--no-watch", action="store_true", help="write answers as they settle, instead of showing them resolve in place"
    )
    parser.add_argument(
        "--delay", type=float, default=0.02, metavar="SECONDS", help="show every state at least this long (%(default)s)"
    )
    add_server_options(parser)
    return parser


def _chat(arguments: argparse.Namespace, runner: asyncio.Runner) -> None:
    """The whole conversation. Raises GenerateError if the server cannot be had at all."""
    if not arguments.delay >= 0:
        raise GenerateError("--delay must not be negative")
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    settings = Settings(arguments.decoding, arguments.temperature, arguments.max_tokens, arguments.seed)
    settings.watch = interactive and not arguments.no_watch
    conversation = Conversation(settings, arguments.system)
    stack = AsyncExitStack()
    try:
        client = runner.run(stack.enter_async_context(connected(arguments)))
        if interactive:
            _set_up_line_editing()
            print("/help lists what can be done here; Ctrl-C stops an answer, Ctrl-D leaves.")
        while (text := _next_message(conversation, interactive)) is not None:
            _ask(client, runner, conversation, text, arguments.delay)
    finally:
        runner.run(stack.aclose())


def _next_message(conversation: Conversation, interactive: bool) -> str | None:
    """What the user says next, their commands carried out; None at the end."""
    while True:
        try:
            text = _read(interactive)
        except KeyboardInterrupt:  # what was typed is dropped, as in a shell
            print()
            continue
        if text is None:
            if interactive:
                print()
            return None
        if not text.startswith("/"):
            if text.strip():
                return text
            continue
        try:
            outcome = carry_out(conversation, text)
        except CommandError as error:
            print(f"lightcone: {error}", file=sys.stderr)
            continue
        if outcome.said:
            print(outcome.said)
        if outcome.leave or outcome.ask is not None:
            return outcome.ask


def _read(interactive: bool) -> str | None:
    """A message, which may go on over several lines; None at the end of the input."""
    lines: list[str] = []
    quoted = False
    while True:
        try:
            line = input((FURTHER if lines or quoted else FIRST) if interactive else "")
        except EOFError:
            return "\n".join(lines) if lines else None
        if not quoted and not lines and line.startswith(QUOTES):
            quoted, line = True, line.removeprefix(QUOTES)
            if not line:
                continue
        if quoted:
            if line.endswith(QUOTES):
                return "\n".join([*lines, line.removesuffix(QUOTES)]).rstrip("\n")
            lines.append(line)
        elif line.endswith("\\"):
            lines.append(line.removesuffix("\\"))
        else:
            return "\n".join([*lines, line])


def _ask(
    client: httpx.AsyncClient, runner: asyncio.Runner, conversation: Conversation, text: str, delay: float
) -> None:
    """One message and its answer. What was answered before a stop or an error stays in the conversation."""
    prompt, answer = conversation.prompt(text), Answer()
    try:
        if conversation.settings.watch:
            runner.run(watch(client, prompt, answer, delay))
        else:
            runner.run(stream(client, prompt, answer))
    except KeyboardInterrupt:
        print("\n(stopped)", file=sys.stderr)
    except GenerateError as error:
        print(one_line(error), file=sys.stderr)
    if answer.text:
        conversation.add(text, answer.text)


def _set_up_line_editing() -> None:
    """The arrow keys recall what was said before, and Tab completes commands, where Python has readline."""
    with contextlib.suppress(ImportError):
        import readline

        names = [f"/{name}" for name in COMMANDS]
        readline.set_completer_delims("")
        readline.set_completer(lambda text, state: [*(name for name in names if name.startswith(text)), None][state])
        readline.parse_and_bind("tab: complete")
