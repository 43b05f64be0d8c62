"""`lightcone bench modes`: tokens per pass, exactness and throughput of every decoding mode, on the same prompts.

Runs are interleaved (every cell once, then every cell again), so that a machine whose speed drifts treats them alike;
medians are reported, and speed is stated as ratios of cells.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import msgspec

from bench import options
from bench.prompts import BUILTIN_PROMPTS, Prompt, Text, read_prompts
from engine.engine import Engine
from engine.events import Finished, GenerationStats, TokensSettled
from engine.models.files import model_directory
from engine.request import CONFIDENT, DecodingParams, Grammar, Remasking, Request, SamplingParams


@dataclass(frozen=True)
class Cell:
    """One way to run the prompts."""

    decoding: str
    concurrency: int
    block_length: int
    threshold: float = 0.9

    @property
    def way(self) -> tuple[str, int, float]:
        """The settings on which answers may depend: all but the concurrency."""
        return (self.decoding, self.block_length, self.threshold)


@dataclass
class Result:
    """The runs of one cell."""

    cell: Cell
    tokens: int = 0
    """Tokens generated in one run."""
    seconds: list[float] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    totals: GenerationStats = field(default_factory=GenerationStats)

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second of the median run."""
        return self.tokens / statistics.median(self.seconds)

    @property
    def tokens_per_pass(self) -> float:
        """Generated tokens by passes, prefill not counted, over all prompts."""
        return self.totals.completion_tokens / max(1, self.totals.passes)

    @property
    def tokens_per_round(self) -> float:
        """Tokens a verified block gives, its bonus token included."""
        return 1 + self.totals.accepted_draft_tokens / max(1, self.totals.blocks)

    def exact(self, prompts: list[Prompt]) -> float:
        """Share of the prompts with one right answer that got it, letter for letter."""
        scored = [a == p.answer for a, p in zip(self.answers, prompts, strict=True) if p.answer is not None]
        return sum(scored) / max(1, len(scored))


def run_modes(
    engine: Engine, text: Text, prompts: list[Prompt], cells: list[Cell], *, repeats: int, temperature: float,
    max_tokens: int,
) -> list[Result]:  # fmt: skip
    """Runs every cell `repeats` times, interleaved, after one run that is not counted."""
    results = [Result(cell) for cell in cells]
    encoded = [text.encode(prompt.prompt) for prompt in prompts]
    for repeat in range(-1, repeats):
        for result in results:
            # The prefix cache would make every run but the first one cheaper: each has its own salt.
            salt = f"{repeat}-{result.cell}"
            seconds, tokens, stats = closed_loop(engine, encoded, result.cell, salt, temperature, max_tokens)
            if repeat < 0:
                result.answers = [text.decode(ids) for ids in tokens]
                result.totals = _sum(stats)
                result.tokens = result.totals.completion_tokens
            else:
                result.seconds.append(seconds)
    return results


def closed_loop(
    engine: Engine, prompts: list[list[int]], cell: Cell, salt: str, temperature: float, max_tokens: int,
    grammars: Sequence[Grammar | None] | None = None,
) -> tuple[float, list[list[int]], list[GenerationStats]]:  # fmt: skip
    """One run with `concurrency` requests in flight until all prompts are done; `grammars` are those of the answers.

    Returns its seconds and, by prompt, the visible tokens and the final statistics.
    """
    queue = deque(enumerate(prompts))
    tokens: list[list[int]] = [[] for _ in prompts]
    stats = [GenerationStats() for _ in prompts]
    in_flight = 0
    # A threshold needs an order by confidence, which not every family's own default is.
    remasking = next((name for name in engine.info.remaskings if name in CONFIDENT), CONFIDENT[0])
    started = time.perf_counter()
    while queue or in_flight:
        while queue and in_flight < cell.concurrency:
            index, ids = queue.popleft()
            request = _request(index, ids, cell, salt, temperature, max_tokens, remasking)
            if grammars is not None:
                request = msgspec.structs.replace(request, grammar=grammars[index])
            engine.add(request)
            in_flight += 1
        events, _ = engine.step()
        for event in events:
            if isinstance(event, TokensSettled):
                tokens[int(event.request_id)] += event.token_ids
            elif isinstance(event, Finished):
                stats[int(event.request_id)] = event.stats
                in_flight -= 1
    return time.perf_counter() - started, tokens, stats


def _request(
    index: int, ids: list[int], cell: Cell, salt: str, temperature: float, max_tokens: int, remasking: Remasking
) -> Request:
    return Request(
        request_id=str(index),
        prompt_token_ids=ids,
        max_tokens=max_tokens,
        sampling=SamplingParams(temperature=temperature, seed=index),
        decoding=DecodingParams(
            mode=cell.decoding,  # type: ignore[arg-type]  # the engine checks it
            block_length=cell.block_length,
            threshold=cell.threshold,
            remasking=remasking,
        ),
        cache_salt=salt,
    )


def _sum(stats: list[GenerationStats]) -> GenerationStats:
    total = GenerationStats()
    for one in stats:
        for name in (
            "completion_tokens",
            "passes",
            "denoising_steps",
            "draft_tokens",
            "accepted_draft_tokens",
            "blocks",
        ):
            setattr(total, name, getattr(total, name) + getattr(one, name))
    return total


def add_parser(commands: options.Commands) -> None:
    """Adds `modes` to the parser of `lightcone bench`."""
    parser = options.add_command(
        commands, "modes", "tokens per pass, exactness and throughput of every decoding mode on the same prompts", run
    )
    parser.add_argument("--prompts", type=Path, default=BUILTIN_PROMPTS, help="JSONL of prompt and answer")
    parser.add_argument("--decoding", type=options.words, default=["ar", "diffusion", "speculative", "auto"])
    parser.add_argument(
        "--concurrency", type=options.integers, default=[1, 16], help="requests in flight, comma separated"
    )
    parser.add_argument("--block-length", type=options.integers, default=None, help="default: the model's own")
    parser.add_argument("--threshold", type=options.numbers, default=[0.9], help="diffusion: confidence that unmasks")
    parser.add_argument("--repeats", type=int, default=5, help="counted, interleaved runs of every cell (default 5)")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--limit", type=int, default=None, help="use the first N prompts only")
    options.add_shared_commit(parser)


def run(args: argparse.Namespace) -> int:
    """`lightcone bench modes`."""
    engine = options.load_engine(args, shared_commit=args.shared_commit)
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
    options.save(args.json, [_figures(result, results, prompts) for result in results])
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
    columns = {
        "decoding": "decoding", "concurrency": "in flight", "block_length": "block", "threshold": "threshold",
        "tokens_per_second": "tok/s", "over_ar": "x ar", "over_one": "x alone", "tokens_per_pass": "tok/pass",
        "tokens_per_round": "tok/round", "exact": "exact", "same_as_ar": "same as ar",
    }  # fmt: skip
    rows = []
    for result in results:
        figures = _figures(result, results, prompts)
        if result.cell.decoding != "diffusion":
            figures["threshold"] = None
        rows.append(figures)
    options.show(f"{len(prompts)} prompts; medians of {len(results[0].seconds)} interleaved runs", columns, rows)
