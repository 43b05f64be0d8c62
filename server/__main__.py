"""The command line: `lightcone serve` and what stands beside it."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from engine.errors import ConfigError
from server.operation import flags
from server.operation.config import ENV_PREFIX, describe, load_config
from server.version import VERSION

TOOLS = {
    "generate": ("server.terminal.command", "complete a prompt in the terminal"),
    "chat": ("server.terminal.chat", "a conversation in the terminal"),
    "doctor": ("server.terminal.doctor", "what this machine has, what a model needs, and what stands in the way"),
    "loadtest": ("loadtest.__main__", "measure any OpenAI-compatible server over HTTP"),
    "bench": ("bench.__main__", "measure the engine in process, without HTTP"),
    "completion": ("server.completion", "a script that completes these commands in bash, zsh or fish"),
}
"""Commands with a parser of their own: module and one line of help. Imported only when asked for."""

CLOSED_PIPE = 128 + 13
"""Exit status as shells give it to a command that SIGPIPE ended."""

USAGE = "lightcone serve [MODEL] [OPTION ...]"
"""In place of the list of all options, which follows anyway, with explanations."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `lightcone` command. Returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words and words[0] in TOOLS:
            tool = importlib.import_module(TOOLS[words[0]][0])
            return int(tool.main(words[1:]))
        arguments = make_parser().parse_args(words)
        run: Callable[[argparse.Namespace], int] = arguments.run
        return run(arguments)
    except BrokenPipeError:  # whoever read the output has seen enough, as in `lightcone doctor | head -3`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be flushed goes nowhere
        return CLOSED_PIPE
    except ConfigError as exc:
        print(f"lightcone: error: {exc}", file=sys.stderr)
        return 2


def make_parser(
    tools: Mapping[str, argparse.ArgumentParser] = MappingProxyType({}),
    on_serve: Callable[[Mapping[str, argparse.Action]], None] = lambda actions: None,
) -> argparse.ArgumentParser:
    """The parser of the `lightcone` command.

    tools: parsers of commands whose options it is to know as well. on_serve: is given the arguments of `serve` by name.
    """
    parser = argparse.ArgumentParser(
        prog="lightcone",
        description="OpenAI-compatible inference server for diffusion language models.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"lightcone {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", usage=USAGE, help="serve a model over HTTP", allow_abbrev=False)
    on_serve(_add_serve(serve))
    for name, (_, line) in TOOLS.items():
        known = [tools[name]] if name in tools else []
        commands.add_parser(name, help=line, parents=known, add_help=not known)
    return parser


def _add_serve(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Adds the arguments of `lightcone serve`. Returns those that take a value, by their names."""
    model = parser.add_argument(
        "positional_model", nargs="?", metavar="MODEL", help="what --model names: a directory, org/name, or builtin"
    )
    file = parser.add_argument("--config", metavar="FILE", help="TOML file with [server] and [engine] sections")
    parser.add_argument("--print-config", action="store_true", help="print the effective configuration and exit")
    parser.set_defaults(run=_serve)
    return {"positional_model": model, "config": file, **flags.add_options(parser)}


def _serve(arguments: argparse.Namespace) -> int:
    file = arguments.config or os.environ.get(ENV_PREFIX + "CONFIG")
    given = flags.given(arguments)
    if arguments.positional_model is not None:
        if "model" in given:
            raise ConfigError(f"the model is given twice: {arguments.positional_model} and --model {given['model']}")
        given["model"] = arguments.positional_model
    config = load_config(given, file=file)
    if arguments.print_config:
        print(describe(config))
        return 0
    from server.serve import run  # `--help` need not wait for the web framework

    return run(config)


if __name__ == "__main__":
    sys.exit(main())
