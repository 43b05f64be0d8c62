"""`lightcone bench copies`: what predictions of the answer, and prompts that the answer repeats, save.

Predictions are the model's own answers, of which a share of the tokens was changed: none, some, and all of them. Every
mode answers with and without. Prompts: `auto` answers questions that were answered before in the same conversation, and
the same questions asked for the first time; with drafts from the prompt and without. Runs take turns, on one engine for
each of the two.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections import deque
from dataclasses import dataclass, field
from itertools import cycle, islice

import msgspec.structs

from bench import options
from bench.prompts import BUILTIN_PROMPTS, Text, read_prompts
from engine.decoding.policies.speculation import Auto
from engine.engine import Engine
from engine.events import Finished, GenerationStats, TokensSettled
from engine.measure.clock import clock_for
from engine.models.files import model_directory
from engine.request import DecodingParams, Mode, Request, SamplingParams

MODES: tuple[Mode, ...] = ("ar", "speculative", "auto")
GREEDY = SamplingParams(temperature=0.0)


@dataclass
class Served:
    """The runs of one kind of requests in one way."""

    name: str
    engine: Engine
    requests: list[Request]
    rates: list[float] = field(default_factory=list)
    """Tokens a second of each run."""
    stats: list[GenerationStats] = field(default_factory=list)
    """Of the latest run's requests."""

    def run(self, in_flight: int, salt: str) -> dict[str, list[int]]:
        """Answers all requests once. Returns the tokens of each."""
        now, running, answers = clock_for(self.engine.device).now, 0, {r.request_id: list[int]() for r in self.requests}
        waiting, self.stats = deque(self.requests), []
        started = now()
        while waiting or running:
            while waiting and running < in_flight:
                self.engine.add(msgspec.structs.replace(waiting.popleft(), cache_salt=salt + self.name))
                running += 1
            for event in self.engine.step()[0]:
                if isinstance(event, TokensSettled):
                    answers[event.request_id] += event.token_ids
                elif isinstance(event, Finished):
                    running -= 1
                    self.stats.append(event.stats)
        self.rates.append(sum(stats.completion_tokens for stats in self.stats) / (now() - started))
        return answers

    def figures(self, plain: Served) -> dict[str, object]:
        """Beside the same requests without drafts from texts."""
        names = ("completion_tokens", "passes", "accepted_prediction_tokens", "rejected_prediction_tokens")
        tokens, passes, accepted, rejected = (sum(getattr(stats, name) for stats in self.stats) for name in names)
        ratios = [own / other for own, other in zip(self.rates, plain.rates, strict=True)]
        return {
            "tokens_per_second": statistics.median(self.rates),
            "ratio": statistics.median(ratios),
            "tokens_per_pass": tokens / max(1, passes),
            "accepted": accepted,
            "rejected": rejected,
        }


def asked(name: str, prompt: list[int], mode: Mode, engine: Engine, max_tokens: int) -> Request:
    """A greedy request."""
    decoding = DecodingParams(mode=mode, block_length=engine.info.block_length)
    return Request(request_id=name, prompt_token_ids=prompt, max_tokens=max_tokens, sampling=GREEDY, decoding=decoding)


def changed(answer: list[int], share: float, vocabulary: list[int], dice: random.Random) -> list[int]:
    """The answer with about this share of its tokens replaced, left out, or followed by another one."""
    text: list[int] = []
    for token in answer:
        if dice.random() >= share:
            text.append(token)
        else:
            text += dice.choice(([], dice.choices(vocabulary), [token, *dice.choices(vocabulary)]))
    return text or dice.choices(vocabulary)


def prediction_runs(engine: Engine, prompts: list[list[int]], shares: list[float], max_tokens: int) -> list[Served]:
    """Every mode without a prediction, then with predictions of which these shares are wrong."""
    dice = random.Random(0)
    vocabulary = [i for i in range(engine.info.vocab_size) if i not in engine.info.banned_token_ids]
    plain = [asked(str(i), ids, "ar", engine, max_tokens) for i, ids in enumerate(prompts)]
    answers = Served("answers", engine, plain).run(8, "")
    found: list[Served] = []
    for mode in MODES:
        requests = [asked(str(i), ids, mode, engine, max_tokens) for i, ids in enumerate(prompts)]
        found.append(Served(f"{mode}, none", engine, requests))
        for share in shares:
            guesses = [changed(answers[each.request_id], share, vocabulary, dice) for each in requests]
            predicting = [
                msgspec.structs.replace(each, prediction_token_ids=guess)
                for each, guess in zip(requests, guesses, strict=True)
            ]
            found.append(Served(f"{mode}, {share:.0%} wrong", engine, predicting))
    return found


def prompt_runs(copying: Engine, plain: Engine, prompts: list[list[int]], text: Text, max_tokens: int) -> list[Served]:
    """`auto` without and with drafts from the prompt: questions asked again, and asked for the first time."""
    first = [asked(str(i), ids, "auto", plain, max_tokens) for i, ids in enumerate(prompts)]
    answers = Served("answers", plain, first).run(8, "")
    end = min(plain.info.end_token_ids)
    bos = plain.info.bos_token_id
    again = [
        asked(str(i), [*ids, *answers[str(i)], end, *ids[bool(ids[:1] == [bos]) :]], "auto", plain, max_tokens)
        for i, ids in enumerate(prompts)
    ]
    return [
        Served(f"{kind}, {how}", engine, requests)
        for kind, requests in (("asked again", again), ("asked once", first))
        for how, engine in (("own drafts", plain), ("and the prompt's", copying))
    ]


def without_prompts(engine: Engine) -> Engine:
    """The engine, whose `auto` drafts by itself alone."""
    policy = engine.policies["auto"]
    if isinstance(policy, Auto):
        policy.lookup.follows_prompts = False
    return engine


def add_parser(commands: options.Commands) -> None:
    """Adds `copies` to the parser of `lightcone bench`."""
    parser = options.add_command(
        commands, "copies", "what predictions save, and prompts that answers repeat, by how much of them is right", run
    )
    parser.add_argument("--wrong", type=options.numbers, default=[0.0, 0.05, 0.2, 1.0], help="shares of a prediction")
    parser.add_argument("--concurrency", type=options.integers, default=[1, 8], help="requests in flight (default 1,8)")
    parser.add_argument("--requests", type=int, default=48, help="of a run (default 48)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each kind, in turn (default 5)")
    parser.add_argument("--max-tokens", type=int, default=96, help="of an answer (default 96)")


def run(args: argparse.Namespace) -> int:
    """`lightcone bench copies`."""
    copying, plain = options.load_engine(args), without_prompts(Engine.load(options.engine_config(args)))
    text = Text(model_directory(args.model), plain.info.bos_token_id)
    prompts = [text.encode(prompt.prompt) for prompt in islice(cycle(read_prompts(BUILTIN_PROMPTS)), args.requests)]
    rows: list[dict[str, object]] = []
    for in_flight in args.concurrency:
        sets = (
            ("prediction", prediction_runs(plain, prompts, args.wrong, args.max_tokens), 1 + len(args.wrong)),
            ("prompt", prompt_runs(copying, plain, prompts, text, args.max_tokens), 2),
        )
        for kind, runs, size in sets:
            for repeat in range(-1, args.repeats):
                for one in runs:
                    one.run(in_flight, f"{in_flight}-{repeat}-")
                    if repeat < 0:  # not counted
                        one.rates.clear()
            for at, one in enumerate(runs):
                rows.append(
                    {"text": kind, "in_flight": in_flight, "name": one.name, **one.figures(runs[at - at % size])}
                )
    columns = {
        "text": "drafts from", "in_flight": "in flight", "name": "requests", "tokens_per_second": "tok/s",
        "ratio": "x without", "tokens_per_pass": "tok/pass", "accepted": "accepted", "rejected": "rejected",
    }  # fmt: skip
    clock = clock_for(plain.device).name
    options.show(f"drafts from known texts; medians of {args.repeats} runs in turn; {clock}", columns, rows)
    options.save(args.json, {"machine": options.machine(plain) | {"clock": clock}, "runs": rows})
    return 0
