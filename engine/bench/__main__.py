"""Command line of `lightcone bench`."""

from __future__ import annotations

import argparse
import json
import sys
from itertools import product
from pathlib import Path

from rich.console import Console
from rich.table import Table

from engine.bench.modes import Cell, Result, run_modes
from engine.bench.prompts import BUILTIN_PROMPTS, Prompt, Text, read_prompts
from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import EngineError
from engine.models.files import model_directory


def make_parser() -> argparse.ArgumentParser:
    """The parser of `lightcone bench`."""
    parser = argparse.ArgumentParser(prog="lightcone bench", description="Measure the engine in process, without HTTP.")
    commands = parser.add_subparsers(dest="command", required=True)
    modes = commands.add_parser(
        "modes", help="tokens per pass, exactness and throughput of every decoding mode on the same prompts"
    )
    modes.add_argument("--model", default="builtin", help="model directory, or builtin (default)")
    modes.add_argument("--prompts", type=Path, default=BUILTIN_PROMPTS, help="JSONL of prompt and answer")
    modes.add_argument("--decoding", type=_words, default=["ar", "diffusion", "speculative", "auto"])
    modes.add_argument("--concurrency", type=_integers, default=[1, 16], help="requests in flight, comma separated")
    modes.add_argument("--block-length", type=_integers, default=None, help="default: the model's own")
    modes.add_argument("--threshold", type=_numbers, default=[0.9], help="diffusion: confidence that unmasks")
    modes.add_argument("--repeats", type=int, default=5, help="counted, interleaved runs of every cell (default 5)")
    modes.add_argument("--temperature", type=float, default=0.0)
    modes.add_argument("--max-tokens", type=int, default=200)
    modes.add_argument("--limit", type=int, default=None, help="use the first N prompts only")
    modes.add_argument("--shared-commit", action="store_true", help="diffusion: commit and first step in one pass")
    modes.add_argument("--threads", type=int, default=None)
    modes.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs `lightcone bench`; returns the exit status."""
    args = make_parser().parse_args(argv)
    try:
        return _modes(args)
    except EngineError as error:
        print(f"lightcone: error: {error}", file=sys.stderr)
        return 1


def _modes(args: argparse.Namespace) -> int:
    engine = Engine.load(EngineConfig(model=args.model, threads=args.threads, shared_commit=args.shared_commit))
    text = Text(model_directory(args.model), engine.info.bos_token_id)
    prompts = read_prompts(args.prompts)[: args.limit]
    cells = [
        Cell(decoding, concurrency, length, threshold)
        for concurrency, decoding, length, threshold in product(
            args.concurrency, args.decoding, args.block_length or [engine.info.block_length], args.threshold
        )
        # Only diffusion has a threshold and only ar has no blocks: those cells would repeat each other.
        if (decoding == "diffusion" or threshold == args.threshold[0])
        and (decoding != "ar" or length == (args.block_length or [engine.info.block_length])[0])
    ]
    results = run_modes(
        engine, text, prompts, cells, repeats=args.repeats, temperature=args.temperature, max_tokens=args.max_tokens
    )
    _print(results, prompts)
    if args.json is not None:
        args.json.write_text(json.dumps([_figures(result, results, prompts) for result in results], indent=1) + "\n")
    return 0


def _figures(result: Result, results: list[Result], prompts: list[Prompt]) -> dict[str, object]:
    cell = result.cell
    ar = next((r for r in results if r.cell.decoding == "ar" and r.cell.concurrency == cell.concurrency), None)
    alone = next((r for r in results if r.cell.way == cell.way and r.cell.concurrency == 1), None)
    return {
        "decoding": cell.decoding,
        "concurrency": cell.concurrency,
        "block_length": cell.block_length,
        "threshold": cell.threshold,
        "tokens_per_second": round(result.tokens_per_second, 1),
        "over_ar": round(result.tokens_per_second / ar.tokens_per_second, 3) if ar else None,
        "over_one": round(result.tokens_per_second / alone.tokens_per_second, 3) if alone else None,
        "tokens_per_pass": round(result.tokens_per_pass, 3),
        "tokens_per_round": round(result.tokens_per_round, 3) if result.totals.draft_tokens else None,
        "exact": round(result.exact(prompts), 4),
        "same_as_ar": sum(a == b for a, b in zip(result.answers, ar.answers, strict=True)) if ar else None,
        "prompts": len(prompts),
    }


def _print(results: list[Result], prompts: list[Prompt]) -> None:
    table = Table(title=f"{len(prompts)} prompts; medians of {len(results[0].seconds)} interleaved runs")
    columns = {
        "decoding": "decoding", "concurrency": "in flight", "block_length": "block", "threshold": "threshold",
        "tokens_per_second": "tok/s", "over_ar": "x ar", "over_one": "x alone", "tokens_per_pass": "tok/pass",
        "tokens_per_round": "tok/round", "exact": "exact", "same_as_ar": "same as ar",
    }  # fmt: skip
    for title in columns.values():
        table.add_column(title, justify="right")
    for result in results:
        figures = _figures(result, results, prompts)
        if result.cell.decoding != "diffusion":
            figures["threshold"] = None
        table.add_row(*("" if figures[key] is None else str(figures[key]) for key in columns))
    Console(width=None if sys.stdout.isatty() else 130).print(table)


def _words(value: str) -> list[str]:
    return value.split(",")


def _integers(value: str) -> list[int]:
    return [int(item) for item in value.split(",")]


def _numbers(value: str) -> list[float]:
    return [float(item) for item in value.split(",")]


if __name__ == "__main__":
    sys.exit(main())
