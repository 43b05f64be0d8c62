"""`lightcone completion SHELL`: a script by which a shell completes commands, options, their values and paths."""

from __future__ import annotations

import argparse
import importlib
import sys
import typing
from collections.abc import Mapping, Sequence

from server.__main__ import make_parser
from server.operation.flags import documented_options

SHELLS = ("bash", "zsh", "fish")
PLACES = {
    "bash": "~/.local/share/bash-completion/completions/lightcone",
    "zsh": "~/.zfunc/_lightcone",
    "fish": "~/.config/fish/completions/lightcone.fish",
}
"""Where each shell looks for the script. zsh: once `fpath+=~/.zfunc` stands before `compinit` in ~/.zshrc."""

PARSERS = {
    "generate": ("server.terminal.parser", "make_parser"),
    "chat": ("server.terminal.chat", "make_parser"),
    "doctor": ("server.terminal.doctor", "make_parser"),
    "loadtest": ("loadtest.command_line", "build_parser"),
    "bench": ("bench.__main__", "make_parser"),
    "completion": ("server.completion", "make_own_parser"),
}
"""Module and function that make the parser of each command with one of its own."""

FILES = {"config", "api_key_file", "tls_cert", "tls_key"}
FOLDERS = {"positional_model", "model"}
"""Arguments of `serve` that are paths."""


def make_own_parser() -> argparse.ArgumentParser:
    """The parser of `lightcone completion`."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="lightcone completion",
        description="Print a script that completes lightcone's commands, options and paths. Write it where the shell "
        "looks for it: " + "; ".join(f"{shell}: {place}" for shell, place in PLACES.items()) + ".",
    )
    parser.add_argument("shell", choices=SHELLS, help="whose script")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the script. Returns the exit status."""
    arguments = make_own_parser().parse_args(argv)
    try:
        script = script_for(arguments.shell)
    except ModuleNotFoundError as error:
        print(f"lightcone: error: completion needs the package {error.name}", file=sys.stderr)
        return 1
    print(script)
    return 0


def script_for(shell: str) -> str:
    """The script. Raises ModuleNotFoundError where the package that writes it is missing."""
    import shtab

    def describe(actions: Mapping[str, argparse.Action]) -> None:
        """Says which values of `serve` are names out of a list, and which are paths."""
        for options in documented_options().values():
            for name, kind, _, _ in options:
                if name in actions and typing.get_origin(kind) is typing.Literal:
                    actions[name].choices = typing.get_args(kind)
        for names, what in ((FILES, shtab.FILE), (FOLDERS, shtab.DIRECTORY)):
            for name in names:
                actions[name].complete = what  # type: ignore[attr-defined]

    tools = {name: getattr(importlib.import_module(module), maker)() for name, (module, maker) in PARSERS.items()}
    return str(shtab.complete(make_parser(tools, describe), shell))


if __name__ == "__main__":
    sys.exit(main())
