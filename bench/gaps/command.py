"""`lightcone bench gaps`: short gaps in known texts, filled with exactly `max_tokens` tokens and with as many as fit.

The texts are the right answers of prompts; a gap is a stretch of one, and the suffix what follows it. Editors ask for
the same 128 or 150 tokens whatever belongs there. Beside these two ways the gap's own length is asked for: nothing that
finds a length can do better than that.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import NamedTuple

from bench import options
from bench.prompts import BUILTIN_PROMPTS, Text, read_prompts
from engine.engine import Engine
from engine.events import Finished, TokensSettled
from engine.measure.clock import clock_for
from engine.models.files import model_directory
from engine.request import DecodingParams, Request, SamplingParams

GREEDY = SamplingParams(temperature=0.0)


class Gap(NamedTuple):
    """A stretch of a text."""

    before: list[int]
    hidden: list[int]
    behind: list[int]


class Filling(NamedTuple):
    """What was made of a gap."""

    token_ids: list[int]
    passes: int
    seconds: float


def gaps_of(texts: list[tuple[list[int], list[int]]], count: int, longest: int, longest_suffix: int) -> list[Gap]:
    """Stretches of 1 to `longest` tokens. texts: prompts and answers; at least one token of an answer stays on each
    side."""
    dice = random.Random(0)
    found = []
    for i in range(count):
        prompt, answer = texts[i % len(texts)]
        length = dice.randint(1, max(1, min(longest, len(answer) - 2)))
        start = dice.randint(1, max(1, len(answer) - length - 1))
        end = start + length
        found.append(Gap([*prompt, *answer[:start]], answer[start:end], answer[end : end + longest_suffix]))
    return found


def fill(engine: Engine, gap: Gap, max_tokens: int, *, finds: bool) -> Filling:
    """Fills one gap, alone."""
    request = Request(
        request_id="gap", prompt_token_ids=gap.before, max_tokens=max_tokens, sampling=GREEDY, finds_gap=finds,
        decoding=DecodingParams(mode="infill", threshold=engine.info.default_threshold),
        suffix_token_ids=gap.behind, cache_salt=f"{max_tokens}{finds}",
    )  # fmt: skip
    now, tokens, passes = clock_for(engine.device).now, list[int](), 0
    started = now()
    engine.add(request)
    while engine.has_work:
        for event in engine.step()[0]:
            if isinstance(event, TokensSettled):
                tokens += event.token_ids
            elif isinstance(event, Finished):
                passes = event.stats.passes
    return Filling(tokens, passes, now() - started)


def figures(name: str, gaps: list[Gap], fillings: list[Filling]) -> dict[str, object]:
    """How many gaps got their text back, and what that took."""
    count = len(gaps)
    pairs = list(zip(gaps, fillings, strict=True))
    return {
        "way": name,
        "exact": sum(gap.hidden == filling.token_ids for gap, filling in pairs) / count,
        "length": sum(len(gap.hidden) == len(filling.token_ids) for gap, filling in pairs) / count,
        "passes": sum(filling.passes for filling in fillings) / count,
        "milliseconds": 1e3 * sum(filling.seconds for filling in fillings) / count,
    }


def add_parser(commands: options.Commands) -> None:
    """Adds `gaps` to the parser of `lightcone bench`."""
    parser = options.add_command(commands, "gaps", "short gaps before a suffix, of given and of found length", run)
    parser.add_argument("--prompts", type=Path, default=BUILTIN_PROMPTS, help="JSONL of prompt and answer")
    parser.add_argument("--gaps", type=int, default=100, help="number of gaps (default 100)")
    parser.add_argument("--longest", type=int, default=12, help="tokens of the longest gap (default 12)")
    parser.add_argument("--suffix", type=int, default=32, help="most tokens behind a gap (default 32)")
    parser.add_argument(
        "--max-tokens", type=options.integers, default=[10, 32, 128], help="that are asked for (default 10,32,128)"
    )


def run(args: argparse.Namespace) -> int:
    """`lightcone bench gaps`."""
    engine = options.load_engine(args, calibration_seconds=0.0)
    text = Text(model_directory(args.model), engine.info.bos_token_id)
    texts = [
        (text.encode(prompt.prompt), text.encode_answer(prompt.answer))
        for prompt in read_prompts(args.prompts)
        if prompt.answer
    ]
    gaps = gaps_of([pair for pair in texts if len(pair[1]) > 2], args.gaps, args.longest, args.suffix)
    rows = [figures("its own length", gaps, [fill(engine, gap, len(gap.hidden), finds=False) for gap in gaps])]
    for most in args.max_tokens:
        for finds in (False, True):
            name = f"{'at most' if finds else 'exactly'} {most}"
            rows.append(figures(name, gaps, [fill(engine, gap, most, finds=finds) for gap in gaps]))
    columns = {
        "way": "asked for", "exact": "exact", "length": "right length", "passes": "passes", "milliseconds": "ms",
    }  # fmt: skip
    clock = clock_for(engine.device).name
    options.show(f"{args.gaps} gaps of 1 to {args.longest} tokens, one at a time; {clock}", columns, rows)
    options.save(args.json, {"machine": options.machine(engine) | {"clock": clock}, "runs": rows})
    return 0
