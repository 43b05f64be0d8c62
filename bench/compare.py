"""`lightcone bench compare`: the engine and the server against the loops a user would otherwise write.

The same weights, prompts, machine and run. Every contender runs once, then every one again, so that a machine whose
speed drifts treats them alike; a ratio is taken within each repeat, and the median of those is reported.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path

import torch

from bench import options
from bench.modes import Cell, closed_loop
from bench.over_http import Server, write_prompts
from bench.prompts import BUILTIN_PROMPTS, Text, read_prompts
from engine.engine import Engine
from engine.models.files import model_directory

SCHEMA = "lightcone-bench-compare/2"
MODES = ("ar", "diffusion", "speculative")

RATIOS = (
    ("engine 1", "plain 1"),
    ("engine N", "plain 1"),
    ("engine N", "plain padded N"),
    ("server 1", "plain 1"),
    ("server N", "plain 1"),
    ("server N", "plain padded N"),
    ("server N", "engine N"),
)
"""(contender, what it is compared with). `plain 1` is also what N requests get from the loop one after another."""

AROUND = {"same": "same answers", "API": "API us/token", "client": "client us/token"}
"""Columns of the table of speeds; the times are CPU times."""


@dataclass
class Run:
    """One run of one contender over all prompts."""

    seconds: float
    tokens: int
    """Generated, end tokens included."""
    cpu_seconds: float | None = None
    """CPU time of this process; None where the work is done in others."""
    answers: list[list[int]] | None = None
    """The visible tokens by prompt, where they are known."""
    around: dict[str, float] | None = None
    """CPU seconds around the engine: of the API process and of the load generator."""


@dataclass
class Contender:
    """One way to answer all prompts in one mode."""

    decoding: str
    name: str
    """`N` in a name stands for the concurrency."""
    answer: Callable[[int], Run]
    """Given the number of the repeat."""
    runs: list[Run] = field(default_factory=list)
    first: Run | None = None
    """The uncounted one."""

    def speeds(self) -> list[float]:
        """Tokens a second of each counted run."""
        return [run.tokens / run.seconds for run in self.runs]

    def cpu_speeds(self) -> list[float] | None:
        """Tokens a second of CPU time: on one thread this does not see what others do on the machine."""
        times = [run.cpu_seconds for run in self.runs]
        return [run.tokens / t for run, t in zip(self.runs, times, strict=True) if t] if all(times) else None


def add_parser(commands: options.Commands) -> None:
    """Adds `compare` to the parser of `lightcone bench`."""
    parser = options.add_command(
        commands, "compare", "the engine and the server against plain transformers loops, in one run", run
    )
    parser.add_argument("--prompts", type=Path, default=BUILTIN_PROMPTS, help="JSONL of prompt and answer")
    parser.add_argument(
        "--limit", type=int, default=32, help="N prompts, the file's over again if it has fewer (default 32)"
    )
    parser.add_argument("--decoding", type=options.words, default=list(MODES), help="default: " + ",".join(MODES))
    parser.add_argument("--concurrency", type=int, default=16, help="requests in flight, rows of a batch (default 16)")
    parser.add_argument("--repeats", type=int, default=5, help="counted, interleaved runs of each (default 5)")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--block-length", type=int, default=None, help="default: the model's own")
    parser.add_argument("--threshold", type=float, default=0.9, help="diffusion: confidence that unmasks (default 0.9)")
    parser.add_argument("--load-format", choices=("auto", "dummy"), default="auto", help="dummy: random weights")
    options.add_shared_commit(parser)
    parser.add_argument("--no-server", action="store_true", help="leave the server out")
    parser.add_argument("--no-plain", action="store_true", help="leave out the plain loops and concurrency 1")


def run(args: argparse.Namespace) -> int:
    """`lightcone bench compare`."""
    engine = options.load_engine(args, load_format=args.load_format, shared_commit=args.shared_commit)
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
        "model": args.model,
        "prompts": len(prompts),
        "concurrency": args.concurrency,
        "max_tokens": args.max_tokens,
        "block_length": args.block_length or engine.info.block_length,
        "threshold": args.threshold,
        "shared_commit": args.shared_commit,
        "repeats": args.repeats,
        "modes": figures,
    }
    _print(figures, args.concurrency, len(prompts), args.repeats)
    options.save(args.json, report)
    return 0


def compete(contenders: list[Contender], repeats: int) -> None:
    """Every contender once uncounted, then `repeats` times in turn."""
    for repeat in range(-1, repeats):
        for contender in contenders:
            done = contender.answer(repeat)
            if repeat < 0:
                contender.first = done
            else:
                contender.runs.append(done)


def in_process(engine: Engine, args: argparse.Namespace, prompts: list[str]) -> list[Contender]:
    """The contenders that run in this process."""
    text = Text(model_directory(args.model), engine.info.bos_token_id)
    encoded = [text.encode(prompt) for prompt in prompts]
    length, threshold = args.block_length or engine.info.block_length, args.threshold
    found = [] if args.no_plain else plain(engine, args, encoded)
    for mode in args.decoding:
        for name, concurrency in in_flight("engine", args):
            cell = Cell(mode, concurrency, length, threshold)
            found.append(Contender(mode, name, engine_runner(engine, encoded, cell, args.max_tokens)))
    return found


def in_flight(name: str, args: argparse.Namespace) -> list[tuple[str, int]]:
    """The contenders' names, and how many requests each has in flight."""
    both = [(f"{name} 1", 1), (f"{name} N", args.concurrency)]
    return both[1:] if args.no_plain else both


def plain(engine: Engine, args: argparse.Namespace, encoded: list[list[int]]) -> list[Contender]:
    """The loops that users would otherwise write."""
    # transformers takes seconds to import: only this command pays.
    from bench.plain import LOOPS, Limits, PlainModel
    from bench.plain_batch import BATCH_LOOPS

    limits = Limits(args.max_tokens, args.block_length or engine.info.block_length, args.threshold)
    model = PlainModel(engine)
    found = []
    for mode in args.decoding:
        one, many = LOOPS[mode], BATCH_LOOPS[mode]

        def in_turn(repeat: int, loop: Callable[..., list[int]] = one) -> Run:
            return timed(engine, lambda: [loop(model, ids, limits) for ids in encoded])

        def padded(repeat: int, loop: Callable[..., list[list[int]]] = many) -> Run:
            groups = [encoded[i : i + args.concurrency] for i in range(0, len(encoded), args.concurrency)]
            return timed(engine, lambda: [answer for group in groups for answer in loop(model, group, limits)])

        found += [Contender(mode, "plain 1", in_turn), Contender(mode, "plain padded N", padded)]
    return found


def timed(engine: Engine, answer: Callable[[], list[list[int]]]) -> Run:
    """A plain loop's run over all prompts."""
    started, cpu = time.perf_counter(), time.process_time()
    answers = answer()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    ends = engine.info.end_token_ids
    visible = [tokens[:-1] if tokens[-1] in ends else tokens for tokens in answers]
    return Run(seconds, sum(map(len, answers)), _only_on_cpu(engine, cpu_seconds), visible)


def engine_runner(engine: Engine, prompts: list[list[int]], cell: Cell, max_tokens: int) -> Callable[[int], Run]:
    """The engine's closed loop over all prompts; each run has a salt of its own, so that none finds cached prompts."""

    def answer(repeat: int) -> Run:
        cpu = time.process_time()
        seconds, answers, stats = closed_loop(engine, prompts, cell, f"{repeat}-{cell}", 0.0, max_tokens)
        cpu_seconds = time.process_time() - cpu
        tokens = sum(one.completion_tokens for one in stats)
        return Run(seconds, tokens, _only_on_cpu(engine, cpu_seconds), answers)

    return answer


def over_http(engine: Engine, args: argparse.Namespace, prompts: list[str], stack: ExitStack) -> list[Contender]:
    """The server, started now and stopped with the stack, at concurrency 1 and N."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lightcone-bench-"))
    file = Path(folder) / "prompts.jsonl"
    write_prompts(file, prompts)
    flags = ["--model", args.model, "--device", args.device, "--dtype", args.dtype]
    flags += ["--load-format", args.load_format, "--threads", str(torch.get_num_threads())]
    flags.append("--shared-commit" if args.shared_commit else "--no-shared-commit")
    server = stack.enter_context(Server(flags, args.core))
    length = args.block_length or engine.info.block_length
    found = []
    for mode in args.decoding:
        for name, concurrency in in_flight("server", args):

            def answer(repeat: int, mode: str = mode, concurrency: int = concurrency) -> Run:
                fields = {"decoding": mode, "temperature": 0, "cache_salt": f"{repeat}-{mode}-{concurrency}"}
                if mode != "ar":
                    fields["block_length"] = length
                if mode == "diffusion":
                    fields["threshold"] = args.threshold
                done = server.load(file, len(prompts), concurrency, fields, args.max_tokens)
                around = {"client": done.client_cpu_seconds}
                if done.api_cpu_seconds is not None:
                    around["API"] = done.api_cpu_seconds
                return Run(done.seconds, done.tokens, around=around)

            found.append(Contender(mode, name, answer))
    return found


def _only_on_cpu(engine: Engine, cpu_seconds: float) -> float | None:
    return cpu_seconds if engine.device.type == "cpu" else None


def mode_figures(mode: str, contenders: list[Contender]) -> dict[str, object]:
    """One mode's speeds and ratios: medians, and the runs they come from."""
    by_name = {contender.name: contender for contender in contenders if contender.decoding == mode}
    ratios = {}
    for name, base in RATIOS:
        if name in by_name and base in by_name:
            ratios[f"{name} / {base}"] = ratio(by_name[name], by_name[base])
    firsts = {name: one.first for name, one in by_name.items() if one.first is not None}
    reference = firsts["engine 1" if "engine 1" in firsts else "engine N"].answers or []
    same = {
        name: sum(a == b for a, b in zip(first.answers, reference, strict=True))
        for name, first in firsts.items()
        if first.answers is not None
    }
    speeds = {name: {"median": statistics.median(c.speeds()), "runs": c.speeds()} for name, c in by_name.items()}
    around = {name: cpu_a_token(contender) for name, contender in by_name.items() if contender.runs[0].around}
    return {
        "decoding": mode,
        "tokens_per_second": speeds,
        "ratios": ratios,
        "tokens": {name: first.tokens for name, first in firsts.items()},
        "same_answers": same,
        "cpu_microseconds_a_token": around,
    }


def cpu_a_token(contender: Contender) -> dict[str, float]:
    """CPU time around the engine, in microseconds a streamed token: medians over the runs."""
    names = contender.runs[0].around or {}
    return {
        name: statistics.median((run.around or {})[name] / run.tokens * 1e6 for run in contender.runs) for name in names
    }


def ratio(contender: Contender, base: Contender) -> dict[str, object]:
    """Of speeds within each repeat, by the wall clock; also of both's fastest runs, and, where both ran in this
    process, by CPU time. Where the three differ much, the machine was busy with something else."""
    mine_s, theirs_s = contender.speeds(), base.speeds()
    pairs = [a / b for a, b in zip(mine_s, theirs_s, strict=True)]
    result: dict[str, object] = {
        "median": statistics.median(pairs),
        "runs": pairs,
        "fastest": max(mine_s) / max(theirs_s),
    }
    mine, theirs = contender.cpu_speeds(), base.cpu_speeds()
    if mine and theirs:
        result["by_cpu_time"] = statistics.median([a / b for a, b in zip(mine, theirs, strict=True)])
    return result


def _print(figures: list[dict[str, object]], concurrency: int, prompts: int, repeats: int) -> None:
    speed_rows: list[dict[str, object]] = []
    ratio_rows: list[dict[str, object]] = []
    for mode in figures:
        speeds, ratios, same = mode["tokens_per_second"], mode["ratios"], mode["same_answers"]
        assert isinstance(speeds, dict)
        assert isinstance(ratios, dict)
        assert isinstance(same, dict)
        for name, found in speeds.items():
            row = {"decoding": mode["decoding"], "name": name.replace("N", str(concurrency))}
            row |= {"median": found["median"], "low": min(found["runs"]), "high": max(found["runs"])}
            around = mode["cpu_microseconds_a_token"]
            assert isinstance(around, dict)
            speed_rows.append(row | {"same": same.get(name)} | around.get(name, {}))
        for name, found in ratios.items():
            row = {"decoding": mode["decoding"], "name": name.replace("N", str(concurrency))}
            row |= {"median": found["median"], "low": min(found["runs"]), "high": max(found["runs"])}
            ratio_rows.append(row | {"fastest": found["fastest"], "cpu": found.get("by_cpu_time")})
    columns = {"decoding": "decoding", "name": "", "median": "tok/s", "low": "lowest", "high": "highest"}
    title = f"{prompts} prompts; medians of {repeats} interleaved runs"
    options.show(title, columns | AROUND, speed_rows)
    columns |= {"median": "ratio", "fastest": "of fastest runs", "cpu": "by CPU time"}
    options.show("Ratios within a repeat; medians", columns, ratio_rows)
