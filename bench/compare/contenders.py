"""The contenders of a comparison: the engine, the server and the transformers loops, and their runs."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench import options
from bench.compare.over_http import ServerUnderTest, write_prompts
from bench.modes import Cell, closed_loop
from bench.prompts import Text
from engine.engine import Engine
from engine.errors import ConfigError
from engine.models.files import model_directory


@dataclass(frozen=True)
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
    """`N` in it stands for the concurrency."""
    answer: Callable[[int], Run]
    """Answers all prompts once. The argument is the number of the repeat."""
    runs: list[Run] = field(default_factory=list)
    first: Run | None = None
    """The first run, which is not counted."""

    def speeds(self) -> list[float]:
        """Tokens a second of each counted run."""
        return [run.tokens / run.seconds for run in self.runs]

    def cpu_speeds(self) -> list[float] | None:
        """Tokens a second of CPU time: on one thread it does not depend on what else the machine does."""
        times = [run.cpu_seconds for run in self.runs]
        return [run.tokens / t for run, t in zip(self.runs, times, strict=True) if t] if all(times) else None


def compete(contenders: list[Contender], repeats: int) -> None:
    """Runs every contender once uncounted, then all in turn, `repeats` times."""
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
    found = [] if args.no_plain else plain_loops(engine, args, encoded)
    for mode in args.decoding:
        for name, concurrency in in_flight("engine", args):
            cell = Cell(mode, concurrency, length, threshold)
            found.append(Contender(mode, name, engine_runner(engine, encoded, cell, args.max_tokens)))
    return found


def in_flight(name: str, args: argparse.Namespace) -> list[tuple[str, int]]:
    """The contenders' names, and how many requests each has in flight."""
    both = [(f"{name} 1", 1), (f"{name} N", args.concurrency)]
    return both[1:] if args.no_plain else both


def plain_loops(engine: Engine, args: argparse.Namespace, encoded: list[list[int]]) -> list[Contender]:
    """The transformers loops that users would otherwise write, as contenders."""
    # Imported here because transformers takes seconds to import.
    from bench.loops.blocks import BLOCK_LOOPS
    from bench.loops.one_request import LOOPS
    from bench.loops.padded_batch import BATCH_LOOPS
    from bench.loops.transformers_model import Limits, TransformersModel
    from bench.loops.whole import WHOLE_LOOPS

    limits = Limits(args.max_tokens, args.block_length or engine.info.block_length, args.threshold)
    model = TransformersModel(engine)
    found = []
    family = engine.info.family
    own_loops = {**BLOCK_LOOPS, **WHOLE_LOOPS}
    if family not in own_loops and not engine.info.decodings[1:]:
        raise ConfigError(f"There is no plain transformers loop for the model family {family}; use --no-plain.")
    loops = {"diffusion": own_loops[family]} if family in own_loops else LOOPS
    for mode in args.decoding:
        one, many = loops[mode], None if family in own_loops else BATCH_LOOPS[mode]

        def in_turn(repeat: int, loop: Callable[..., list[int]] = one) -> Run:
            return timed(engine, lambda: [loop(model, ids, limits) for ids in encoded])

        found.append(Contender(mode, "plain 1", in_turn))
        if many is None:  # no published loop of these families takes a padded batch
            continue

        def padded(repeat: int, loop: Callable[..., list[list[int]]] = many) -> Run:
            groups = [encoded[i : i + args.concurrency] for i in range(0, len(encoded), args.concurrency)]
            return timed(engine, lambda: [answer for group in groups for answer in loop(model, group, limits)])

        found.append(Contender(mode, "plain padded N", padded))
    return found


def timed(engine: Engine, answer: Callable[[], list[list[int]]]) -> Run:
    """One run of a transformers loop over all prompts."""
    started, cpu = time.perf_counter(), time.process_time()
    answers = answer()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    ends = engine.info.end_token_ids
    visible = [tokens[:-1] if tokens[-1] in ends else tokens for tokens in answers]
    return Run(seconds, sum(map(len, answers)), _only_on_cpu(engine, cpu_seconds), visible)


def engine_runner(engine: Engine, prompts: list[list[int]], cell: Cell, max_tokens: int) -> Callable[[int], Run]:
    """A run of the engine over all prompts. Each run has another cache salt, so that none finds cached prompts."""

    def answer(repeat: int) -> Run:
        cpu = time.process_time()
        seconds, answers, stats = closed_loop(engine, prompts, cell, f"{repeat}-{cell}", 0.0, max_tokens)
        cpu_seconds = time.process_time() - cpu
        tokens = sum(one.completion_tokens for one in stats)
        return Run(seconds, tokens, _only_on_cpu(engine, cpu_seconds), answers)

    return answer


def over_http(engine: Engine, args: argparse.Namespace, prompts: list[str], stack: ExitStack) -> list[Contender]:
    """The server at concurrency 1 and N. It is started now and stopped when the stack is closed."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lightcone-bench-"))
    file = Path(folder) / "prompts.jsonl"
    write_prompts(file, prompts)
    flags = ["--model", args.model, "--device", args.device, "--dtype", args.dtype]
    flags += ["--load-format", args.load_format, "--threads", str(torch.get_num_threads())]
    said = options.overrides(args)
    flags += [
        word
        for name, value in said.items()
        if value is not None
        for word in (f"--{name.replace('_', '-')}", f"{value}")
    ]
    flags.append("--shared-commit" if args.shared_commit else "--no-shared-commit")
    server = stack.enter_context(ServerUnderTest(flags, args.core))
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
