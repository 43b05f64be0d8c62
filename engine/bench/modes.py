"""`lightcone bench modes`: tokens per pass, exactness and throughput of every decoding mode, on the same prompts.

Runs are interleaved (every cell once, then every cell again), so that a machine whose speed drifts treats them alike;
medians are reported, and speed is stated as ratios of cells.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from dataclasses import dataclass, field

from engine.bench.prompts import Prompt, Text
from engine.engine import Engine
from engine.events import Finished, GenerationStats, TokensCommitted
from engine.request import DecodingParams, Request, SamplingParams


@dataclass(frozen=True)
class Cell:
    """One way to run the prompts."""

    decoding: str
    concurrency: int
    block_length: int
    threshold: float = 0.9

    @property
    def way(self) -> tuple[str, int, float]:
        """What the answers may depend on; concurrency is not in it."""
        return (self.decoding, self.block_length, self.threshold)


@dataclass
class Result:
    """What the runs of one cell gave."""

    cell: Cell
    tokens: int = 0
    """Tokens of one run."""
    seconds: list[float] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    totals: GenerationStats = field(default_factory=GenerationStats)

    @property
    def tokens_per_second(self) -> float:
        """Of the median run."""
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
            seconds, tokens, stats = _run(engine, encoded, result.cell, salt, temperature, max_tokens)
            if repeat < 0:
                result.answers = [text.decode(ids) for ids in tokens]
                result.totals = _sum(stats)
                result.tokens = result.totals.completion_tokens
            else:
                result.seconds.append(seconds)
    return results


def _run(
    engine: Engine, prompts: list[list[int]], cell: Cell, salt: str, temperature: float, max_tokens: int
) -> tuple[float, list[list[int]], list[GenerationStats]]:
    """One closed-loop run: `concurrency` requests in flight until all prompts are done."""
    queue = deque(enumerate(prompts))
    tokens: list[list[int]] = [[] for _ in prompts]
    stats = [GenerationStats() for _ in prompts]
    in_flight = 0
    started = time.perf_counter()
    while queue or in_flight:
        while queue and in_flight < cell.concurrency:
            index, ids = queue.popleft()
            engine.add(_request(index, ids, cell, salt, temperature, max_tokens))
            in_flight += 1
        events, _ = engine.step()
        for event in events:
            if isinstance(event, TokensCommitted):
                tokens[int(event.request_id)] += event.token_ids
            elif isinstance(event, Finished):
                stats[int(event.request_id)] = event.stats
                in_flight -= 1
    return time.perf_counter() - started, tokens, stats


def _request(index: int, ids: list[int], cell: Cell, salt: str, temperature: float, max_tokens: int) -> Request:
    return Request(
        request_id=str(index),
        prompt_token_ids=ids,
        max_tokens=max_tokens,
        sampling=SamplingParams(temperature=temperature, seed=index),
        decoding=DecodingParams(
            decoding=cell.decoding,  # type: ignore[arg-type]  # the engine's door checks it
            block_length=cell.block_length,
            threshold=cell.threshold,
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
