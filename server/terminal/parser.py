"""The flags of `lightcone generate`."""

from __future__ import annotations

import argparse
from typing import Any

import msgspec

from server.terminal.connection import add_server_options

_EPILOG = """\
With --watch, settled text is plain, a draft token is coloured by the model's confidence in it, and a mask is shown
as a shaded cell. When the output is not a terminal, the text alone is streamed."""

MODES = ("auto", "ar", "speculative", "diffusion")


def make_parser() -> argparse.ArgumentParser:
    """The parser of `lightcone generate`."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="lightcone generate",
        description="Complete a prompt in the terminal, by a running server or by the built-in model.",
        epilog=_EPILOG,
    )
    parser.add_argument("prompt", help="the prompt; '-' reads it from standard input")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--chat", action="store_true", help="send the prompt as a user's message (default)")
    form.add_argument("--raw", action="store_true", help="send the prompt as it is, to /v1/completions")
    parser.add_argument("--decoding", choices=MODES, help="decoding mode (default: the model's best exact mode)")
    parser.add_argument("--watch", action="store_true", help="show the text resolving in place, and what it cost")
    parser.add_argument(
        "--against", choices=MODES, help="--watch: a second mode beside the first, which --decoding names"
    )
    parser.add_argument(
        "--max-tokens", type=int, metavar="N", help="(default: what is left of the context; 64 for --raw and --suffix)"
    )
    parser.add_argument("--temperature", type=float, metavar="X", help="0 is greedy (default: 1)")
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text")
    parser.add_argument("--threshold", type=float, metavar="X", help="diffusion: unmask at this confidence or above")
    parser.add_argument("--block-length", type=int, metavar="N", help="tokens refined together (default: the model's)")
    parser.add_argument(
        "--field", action="append", default=[], type=field, metavar="NAME=VALUE",
        help="a further field of the request, as JSON or else as text: --field top_p=0.9 --field remasking=random",
    )  # fmt: skip
    parser.add_argument("--suffix", metavar="TEXT", help="fill the gap between the prompt and this text")
    add_server_options(parser)
    parser.add_argument(
        "--delay",
        type=float,
        default=0.05,
        metavar="SECONDS",
        help="--watch: show every state for at least this long; the seconds reported do not include it "
        "(default: %(default)s)",
    )
    return parser


def field(text: str) -> tuple[str, Any]:
    """NAME=VALUE as (name, value). Raises ArgumentTypeError."""
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise argparse.ArgumentTypeError(f"{text!r} must be NAME=VALUE")
    try:
        return name, msgspec.json.decode(value)
    except msgspec.DecodeError:
        return name, value
