"""`lightcone generate`: reads the flags, asks the server, writes the text; every failure is one line."""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Sequence
from dataclasses import replace

from server.terminal.completion_client import Answer, GenerateError, Prompt
from server.terminal.connection import connected, exit_status
from server.terminal.parser import make_parser
from server.terminal.showing import race, stream, watch

MAX_DRAWN_SEED = 2**31


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status."""
    arguments = make_parser().parse_args(argv)
    return exit_status(lambda runner: runner.run(_generate(arguments)))


async def _generate(arguments: argparse.Namespace) -> None:
    prompt = _prompt(arguments)
    async with connected(arguments) as client:
        if not arguments.watch or not sys.stdout.isatty():
            await stream(client, prompt, Answer())
        elif arguments.against is None:
            await watch(client, prompt, Answer(), arguments.delay)
        else:
            # One seed for both: the modes that are exact must give one text.
            first = replace(prompt, seed=secrets.randbelow(MAX_DRAWN_SEED)) if prompt.seed is None else prompt
            await race(client, _in_modes(first, [arguments.decoding, arguments.against]), arguments.delay)


def _prompt(arguments: argparse.Namespace) -> Prompt:
    if arguments.suffix is not None and arguments.chat:
        raise GenerateError("--suffix fills a gap in a text: it cannot be combined with --chat")
    if not arguments.delay >= 0:
        raise GenerateError("--delay must not be negative")
    if arguments.against is not None:
        _check_race(arguments)
    return Prompt(
        text=sys.stdin.read() if arguments.prompt == "-" else arguments.prompt,
        raw=arguments.raw or arguments.suffix is not None,
        suffix=arguments.suffix,
        decoding=arguments.decoding,
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        seed=arguments.seed,
        threshold=arguments.threshold,
        block_length=arguments.block_length,
        fields=dict(arguments.field),
    )


def _in_modes(prompt: Prompt, modes: Sequence[str]) -> list[Prompt]:
    """The request in each mode. A field that means something in some of them goes to those; in none, it is refused."""
    for_diffusion = [mode == "diffusion" for mode in modes]
    for_blocks = [mode != "ar" for mode in modes]
    return [
        replace(
            prompt,
            decoding=mode,
            threshold=prompt.threshold if diffuses or not any(for_diffusion) else None,
            block_length=prompt.block_length if has_blocks or not any(for_blocks) else None,
        )
        for mode, diffuses, has_blocks in zip(modes, for_diffusion, for_blocks, strict=True)
    ]


def _check_race(arguments: argparse.Namespace) -> None:
    """Raises GenerateError for what two modes beside each other cannot be asked."""
    if not arguments.watch:
        raise GenerateError("--against shows two modes beside each other: it needs --watch")
    if arguments.decoding is None:
        raise GenerateError("--against needs --decoding: the mode that it is compared with")
    if arguments.suffix is not None:
        raise GenerateError("--suffix is filled by diffusion alone: it cannot be combined with --against")
