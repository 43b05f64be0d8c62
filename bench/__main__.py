"""Command line of `lightcone bench`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from bench import auto, formats, modes, passes, speed_of_light
from bench.compare import command as compare
from bench.copies import command as copies
from bench.gaps import command as gaps
from bench.peers import command as peers
from engine.errors import EngineError


def make_parser() -> argparse.ArgumentParser:
    """The parser of `lightcone bench`."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="lightcone bench", description="Measure the engine in process, without HTTP."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (modes, auto, copies, gaps, passes, speed_of_light, formats, compare, peers):
        command.add_parser(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs `lightcone bench`; returns the exit status."""
    args = make_parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = args.run
    try:
        return run(args)
    except EngineError as error:
        print(f"lightcone: error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
