"""`lightcone bench auto`: does `auto` find its widths after a bad start, and for requests of different kinds?

Each start loads an engine while other processes keep the machine busy, ends those, and lets `auto` answer requests:
predictable ones, predictable ones after hard ones of somebody else, and a mix of both. Beside it a second engine
answers the same requests in the fixed modes, so that `auto` learns nothing from their passes. Predictable are the
prompts of the built-in model's domain, greedy; hard are random tokens at a high temperature, of which no draft holds.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice

import msgspec.structs

from bench import options
from bench.prompts import BUILTIN_PROMPTS, Text, read_prompts
from engine.engine import Engine
from engine.events import Finished
from engine.measure.clock import clock_for
from engine.models.files import model_directory
from engine.request import DecodingParams, Mode, Request, SamplingParams

FIXED: tuple[Mode, ...] = ("ar", "speculative")
GREEDY = SamplingParams(temperature=0.0)
HARD_TEMPERATURE = 1.5
BUSY = "while True: pass"


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Until the context ends, so many other processes do nothing but take processor time."""
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def requests_of(engine: Engine, text: Text, easy: int, hard: int, max_tokens: int) -> dict[str, list[Request]]:
    """By kind: predictable requests, hard ones, and both in a random order. Their mode is set when they run."""
    dice = random.Random(0)
    prompts = [text.encode(prompt.prompt) for prompt in read_prompts(BUILTIN_PROMPTS)]
    predictable = [
        Request(request_id=f"easy-{i}", prompt_token_ids=ids, max_tokens=max_tokens, sampling=GREEDY)
        for i, ids in enumerate(islice(cycle(prompts), easy))
    ]
    ids = [i for i in range(engine.info.vocab_size) if i not in engine.info.banned_token_ids]
    surprising = [
        Request(
            request_id=f"hard-{i}", prompt_token_ids=dice.choices(ids, k=16), max_tokens=max_tokens, ignore_eos=True,
            sampling=SamplingParams(temperature=HARD_TEMPERATURE, seed=i),
        )
        for i in range(hard)
    ]  # fmt: skip
    return {"easy": predictable, "hard": surprising, "mix": dice.sample(predictable + surprising, easy + hard)}


def speed(engine: Engine, requests: list[Request], mode: Mode, in_flight: int, salt: str) -> float:
    """Tokens a second of one run in a mode, by the clock that says most on this device."""
    now, tokens, running = clock_for(engine.device).now, 0, 0
    waiting = deque(requests)
    started = now()
    while waiting or running:
        while waiting and running < in_flight:
            engine.add(_in_mode(waiting.popleft(), engine, mode, salt))
            running += 1
        events, stats = engine.step()
        tokens += stats.generated
        running -= sum(isinstance(event, Finished) for event in events)
    return tokens / (now() - started)


def _in_mode(request: Request, engine: Engine, mode: Mode, salt: str) -> Request:
    decoding = DecodingParams(mode=mode, block_length=engine.info.block_length)
    return msgspec.structs.replace(request, decoding=decoding, cache_salt=salt)


def one_start(
    adaptive: Engine, fixed: Engine, requests: dict[str, list[Request]], in_flight: int, salt: str
) -> list[dict[str, object]]:
    """What `auto` makes of each kind of traffic, next to the fixed modes."""
    rows: list[dict[str, object]] = []
    for name, kind, before in (("after the start", "easy", None), ("after hard", "easy", "hard"), ("mix", "mix", None)):
        if before is not None:
            speed(adaptive, requests[before], "auto", in_flight, f"{salt}{name}-before")
        auto = speed(adaptive, requests[kind], "auto", in_flight, salt + name)
        others: dict[str, float] = {}
        for mode in FIXED:
            others[mode] = speed(fixed, requests[kind], mode, in_flight, f"{salt}{name}{mode}")
        rows.append({"traffic": name, "auto": auto, "ratio": auto / max(others.values())} | others)
    return rows


def add_parser(commands: options.Commands) -> None:
    """Adds `auto` to the parser of `lightcone bench`."""
    parser = options.add_command(
        commands, "auto", "auto against the best fixed mode, after disturbed starts and hard requests", run
    )
    parser.add_argument("--starts", type=int, default=10, help="engines started, one after another (default 10)")
    parser.add_argument("--busy", type=int, default=2, help="processes that disturb each start (default 2)")
    parser.add_argument("--concurrency", type=options.integers, default=[1, 8], help="requests in flight (default 1,8)")
    parser.add_argument("--easy", type=int, default=72, help="predictable requests of a run (default 72)")
    parser.add_argument("--hard", type=int, default=50, help="hard requests of a run (default 50)")
    parser.add_argument("--max-tokens", type=int, default=64, help="of an answer (default 64)")


def run(args: argparse.Namespace) -> int:
    """`lightcone bench auto`."""
    fixed = options.load_engine(args, calibration_seconds=0.0)
    text = Text(model_directory(args.model), fixed.info.bos_token_id)
    requests = requests_of(fixed, text, args.easy, args.hard, args.max_tokens)
    rows: list[dict[str, object]] = []
    for start in range(args.starts):
        for in_flight in args.concurrency:
            with busy(args.busy):
                adaptive = Engine.load(options.engine_config(args))
            figures = one_start(adaptive, fixed, requests, in_flight, f"{start}-{in_flight}-")
            rows += [{"start": start, "concurrency": in_flight, **row} for row in figures]
    columns = {
        "start": "start", "concurrency": "in flight", "traffic": "traffic", "ar": "ar tok/s",
        "speculative": "speculative tok/s", "auto": "auto tok/s", "ratio": "auto / best",
    }  # fmt: skip
    clock = clock_for(fixed.device).name
    options.show(f"auto against the best fixed mode; {args.busy} busy processes at each start; {clock}", columns, rows)
    options.save(args.json, {"machine": options.machine(fixed) | {"clock": clock}, "runs": rows})
    return 0
