"""The command line: `lightcone serve` and what stands beside it."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence

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
}
"""Commands with a parser of their own: module and one line of help. Imported only when asked for."""

USAGE = "lightcone serve [MODEL] [OPTION ...]"
"""In place of the list of all options, which follows anyway, with explanations."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `lightcone` command. Returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in TOOLS:
        tool = importlib.import_module(TOOLS[words[0]][0])
        return int(tool.main(words[1:]))
    parser = argparse.ArgumentParser(
        prog="lightcone",
        description="OpenAI-compatible inference server for diffusion language models.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"lightcone {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_serve(commands.add_parser("serve", usage=USAGE, help="serve a model over HTTP", allow_abbrev=False))
    for name, (_, line) in TOOLS.items():
        commands.add_parser(name, help=line)
    arguments = parser.parse_args(words)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return run(arguments)
    except ConfigError as exc:
        print(f"lightcone: error: {exc}", file=sys.stderr)
        return 2


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "positional_model", nargs="?", metavar="MODEL", help="what --model names: a directory, org/name, or builtin"
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file with [server] and [engine] sections")
    parser.add_argument("--print-config", action="store_true", help="print the effective configuration and exit")
    flags.add_options(parser)
    parser.set_defaults(run=_serve)


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
