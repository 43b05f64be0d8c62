"""A machine and requests made of numbers: how well a width controller does, without a model and without a clock."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import accumulate

from engine.decoding.acceptance import AcceptanceEstimate
from engine.decoding.costs import CostTable, PassCosts
from engine.decoding.width import WidthController
from engine.request import DecodingParams, Request, SamplingParams
from engine.sequence import Block, DraftRecord, Sequence

WIDTHS, BATCHES = (1, 2, 4, 8, 16, 32), (1, 2, 4, 8, 16, 32, 64)


def roofline(flat: float, token: float = 1.0, base: float = 0.0) -> CostTable:
    """A device that waits for memory up to `flat` tokens in a pass, and then pays by the token."""
    rows = tuple(tuple(1e-3 * (base + token * max(flat, float(w * b))) for b in BATCHES) for w in WIDTHS)
    return CostTable(WIDTHS, BATCHES, rows)


def scaled(table: CostTable, factor: Callable[[int, int], float]) -> CostTable:
    """The table as a disturbed start would have measured it. factor: by width and batch."""
    rows = tuple(
        tuple(value * factor(width, batch) for batch, value in zip(table.batches, row, strict=True))
        for width, row in zip(table.widths, table.seconds, strict=True)
    )
    return replace(table, seconds=rows)


@dataclass
class Machine:
    """Passes take what a true table says, with noise."""

    costs: CostTable
    noise: float = 0.05
    """Standard deviation of the logarithm of seconds."""
    outliers: float = 0.02
    """Share of passes that take three times as long."""
    slow: Callable[[float], float] = lambda seconds: 1.0
    """How many times slower everything is, by the time since the beginning."""
    dice: random.Random = field(default_factory=lambda: random.Random(1))
    seconds: float = 0.0
    passes: int = 0

    def run(self, tokens: int, sequences: int) -> float:
        """Seconds of one pass."""
        took = self.costs.lookup(tokens / sequences, sequences) * self.slow(self.seconds)
        took *= 2.718281828 ** self.dice.gauss(0.0, self.noise)
        took *= 3.0 if self.dice.random() < self.outliers else 1.0
        self.seconds += took
        self.passes += 1
        return took


@dataclass(frozen=True)
class Text:
    """A request: how many tokens, and P(draft k is accepted, those before it were)."""

    rates: tuple[float, ...]
    tokens: int = 100

    @classmethod
    def even(cls, rate: float, tokens: int = 100) -> Text:
        """The same rate at every place."""
        return cls((rate,) * (WIDTHS[-1] - 1), tokens)


class Knowing(WidthController):
    """Knows what passes cost and how the drafts of each request fare; tries nothing."""

    def __init__(self, costs: CostTable) -> None:
        super().__init__(costs, AcceptanceEstimate(WIDTHS[-1]))
        self.costs = Unmoved(costs)
        self.acceptance = Known(WIDTHS[-1])
        self.explores = False


class Unmoved(PassCosts):
    """Right from the beginning."""

    def observe(self, width: float, batch: int, context: float, seconds: float) -> None:
        pass


class Known(AcceptanceEstimate):
    """Reads a request's rates from its record, where `simulate` puts them."""

    def survival_of(self, record: DraftRecord, hopeful: float = 0.0) -> list[float]:
        return list(accumulate(record.hits, lambda a, b: a * b))

    def observe_for(self, record: DraftRecord, drafted: int, accepted: int) -> None:
        pass


def sequence(number: int, text: Text) -> Sequence:
    """A sequence whose drafts' confidences say nothing."""
    request = Request(
        request_id=str(number), prompt_token_ids=[1], max_tokens=text.tokens,
        sampling=SamplingParams(temperature=1.0, seed=number),
        decoding=DecodingParams(mode="auto", block_length=WIDTHS[-1]),
    )  # fmt: skip
    return Sequence(request, frozenset(), number)


@dataclass
class Result:
    """Seconds and tokens by the end of every pass, and the widths chosen."""

    seconds: list[float] = field(default_factory=lambda: [0.0])
    tokens: list[int] = field(default_factory=lambda: [0])
    widths: list[int] = field(default_factory=list)
    busy: int = 0
    """Passes until no request waited any more."""

    def rate(self, after: int = 0) -> float:
        """Tokens a second between a pass and the last one that was as full as could be."""
        last = self.busy
        return (self.tokens[last] - self.tokens[after]) / (self.seconds[last] - self.seconds[after])


def simulate(
    controller: WidthController, machine: Machine, texts: Iterable[Text], in_flight: int = 1, fixed: int | None = None
) -> Result:
    """Answers requests in turn, `in_flight` at a time. fixed: the width of every block; None: the controller's."""
    result, waiting = Result(), deque(enumerate(texts))
    running: list[tuple[Sequence, Text]] = []
    dice = random.Random(2)
    while waiting or running:
        if waiting:
            result.busy = len(result.tokens) - 1
        while waiting and len(running) < in_flight:
            number, text = waiting.popleft()
            running.append((sequence(number, text), text))
        spans = [_span(controller, seq, text, len(running), fixed, result) for seq, text in running]
        took = machine.run(sum(spans), len(running))
        settled = sum(_settle(controller, seq, text, dice) for seq, text in running)
        controller.observe_pass(sum(spans), len(running), 0, took)
        running = [(seq, text) for seq, text in running if seq.num_remaining > 0]
        result.seconds.append(machine.seconds)
        result.tokens.append(result.tokens[-1] + settled)
    return result


def _span(
    controller: WidthController, seq: Sequence, text: Text, running: int, fixed: int | None, result: Result
) -> int:
    """Query tokens of the sequence in the next pass."""
    if seq.block is None:
        if isinstance(controller.acceptance, Known):
            seq.drafts = DraftRecord(hits=list(text.rates), width=seq.drafts.width if seq.drafts else 0)
        width = fixed if fixed is not None else controller.draft_width(seq, running, WIDTHS[-1])
        result.widths.append(width)
        width = min(width, seq.num_remaining)
        if width > 1:
            seq.block = Block.fresh(0, width, 0, 1)
        return width
    seq.block.masked = [False] * len(seq.block)
    seq.block.truncate(controller.verify_length(seq, seq.block, running))
    return len(seq.block)


def _settle(controller: WidthController, seq: Sequence, text: Text, dice: random.Random) -> int:
    """Tokens that the pass gave the sequence. A block that is still masked has only now been drafted."""
    block, tokens = seq.block, 1
    if block is not None:
        if any(block.masked):
            return 0
        drafts = text.rates[: len(block) - 1]
        accepted = next((k for k, rate in enumerate(drafts) if dice.random() >= rate), len(drafts))
        controller.observe_draft(seq, len(drafts), accepted)
        seq.block, tokens = None, accepted + 1
    tokens = min(tokens, seq.num_remaining)
    seq.token_ids += [0] * tokens
    return tokens
