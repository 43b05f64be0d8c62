"""The command `lightcone bench compare`.

All contenders have the same weights, prompts and machine. Every one runs once, then every one again, so that a machine
whose speed drifts treats them alike; a ratio is taken within each repeat, and the median of those is reported.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path

from bench import options
from bench.compare.contenders import compete, in_process, over_http
from bench.compare.figures import mode_figures, show_figures
from bench.prompts import BUILTIN_PROMPTS, read_prompts
from bench.shapes import SHAPES, write_shape

SCHEMA = "lightcone-bench-compare/2"
MODES = ("ar", "diffusion", "speculative")


def add_parser(commands: options.Commands) -> None:
    """Adds `compare` to the parser of `lightcone bench`."""
    parser = options.add_command(
        commands, "compare", "the engine and the server against plain transformers loops, in one run", run
    )
    parser.add_argument("--prompts", type=Path, default=BUILTIN_PROMPTS, help="JSONL of prompt and answer")
    parser.add_argument(
        "--limit", type=int, default=32, help="N prompts, the file's over again if it has fewer (default 32)"
    )
    parser.add_argument(
        "--decoding", type=options.words, default=None, help=f"default: what the model has of {','.join(MODES)}"
    )
    parser.add_argument("--concurrency", type=int, default=16, help="requests in flight, rows of a batch (default 16)")
    parser.add_argument("--repeats", type=int, default=5, help="counted, interleaved runs of each (default 5)")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--block-length", type=int, default=None, help="default: the model's own")
    parser.add_argument("--threshold", type=float, default=0.9, help="diffusion: confidence that unmasks (default 0.9)")
    parser.add_argument("--load-format", choices=("auto", "dummy"), default="auto", help="dummy: random weights")
    parser.add_argument(
        "--shape", choices=list(SHAPES), default=None,
        help="instead of --model: random weights of a family, of about 100 million parameters (nemotron: 350)",
    )  # fmt: skip
    options.add_shared_commit(parser)
    parser.add_argument("--no-server", action="store_true", help="leave the server out")
    parser.add_argument("--no-plain", action="store_true", help="leave out the plain loops and concurrency 1")


def run(args: argparse.Namespace) -> int:
    """`lightcone bench compare`. Raises EngineError."""
    with tempfile.TemporaryDirectory(prefix="lightcone-bench-") as folder:
        if args.shape is not None:
            write_shape(Path(folder), args.shape, tokenizer=True)
            args.model, args.load_format = folder, "dummy"
            args.mask_token_id = args.mask_token_id or SHAPES[args.shape].mask_token_id
        return _compare(args)


def _compare(args: argparse.Namespace) -> int:
    engine = options.load_engine(args, load_format=args.load_format, shared_commit=args.shared_commit)
    args.decoding = args.decoding or [mode for mode in MODES if mode in engine.info.decodings]
    prompts = [prompt.prompt for prompt in islice(cycle(read_prompts(args.prompts)), args.limit)]
    with ExitStack() as stack:
        contenders = in_process(engine, args, prompts)
        if not args.no_server:
            contenders += over_http(engine, args, prompts, stack)
        compete(contenders, args.repeats)
    figures = [mode_figures(mode, contenders) for mode in args.decoding]
    report = {
        "schema": SCHEMA,
        "machine": options.machine(engine),
        "model": args.shape or args.model,
        "prompts": len(prompts),
        "concurrency": args.concurrency,
        "max_tokens": args.max_tokens,
        "block_length": args.block_length or engine.info.block_length,
        "threshold": args.threshold,
        "shared_commit": args.shared_commit,
        "repeats": args.repeats,
        "modes": figures,
    }
    show_figures(figures, args.concurrency, len(prompts), args.repeats)
    options.save(args.json, report)
    return 0
