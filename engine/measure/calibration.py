"""Measures the seconds that passes take on this machine, by width and batch, for the mode that adapts to them."""

from __future__ import annotations

import time

from engine.batch import CAUSAL, BatchPlan, Phase, Span, StepGroup
from engine.config import EngineConfig
from engine.decoding.costs import CostTable
from engine.measure.clock import clock_for
from engine.runner.model_runner import ModelRunner
from engine.sampling.divided import DividedLogits, PlainChoice
from engine.sequence import Sequence

CONTEXT = 128
"""Tokens of context the measured passes attend to."""
LONG_CONTEXT, LONG_BATCH, LONG_WIDTH = 1024, 8, 16
"""Most tokens of context, sequences, and query tokens of each, of the passes that measure the cost of context."""
REPEATS = 3
"""Most times that a pass is measured; the fastest counts."""


def measure_costs(runner: ModelRunner, config: EngineConfig, max_model_len: int) -> CostTable:
    """Times verifying passes, narrow and small ones first, for about `config.calibration_seconds`.

    In rounds, the first within half of the time: what disturbs the machine for a while spoils no figure in
    all of them. Call it before any request is served: it overwrites pages and page-table rows. Combinations for which
    there is no time or no budget of tokens are left to the table's extrapolation.
    """
    widths = [1 << i for i in range(config.max_block_length.bit_length()) if 1 << i <= config.max_block_length]
    batches = [1 << i for i in range(config.max_running.bit_length()) if 1 << i <= config.max_running]
    widths = [width for width in widths if width <= max_model_len]
    context = min(CONTEXT, max_model_len - widths[-1])
    seconds: dict[int, list[float]] = {width: [] for width in widths}
    deadline = time.monotonic() + config.calibration_seconds
    per_position, per_pair = context_costs(runner, config, context, max_model_len, deadline)
    halfway = (time.monotonic() + deadline) / 2
    for batch in batches:
        for width in widths:
            reached = len(seconds[width]) == batches.index(batch)
            fits = batch * width <= config.max_batch_tokens
            if reached and (batch == 1 or (fits and time.monotonic() < halfway)):
                plan = _verifying_pass(runner, width, batch, context)
                seconds[width].append(_time_pass(runner, plan))
    _measure_again(runner, seconds, batches, context, deadline)
    measured = tuple(tuple(row) for row in _without_excess([seconds[width] for width in widths]))
    return CostTable(tuple(widths), tuple(batches), measured, context, per_position, per_pair)


def _measure_again(
    runner: ModelRunner, seconds: dict[int, list[float]], batches: list[int], context: int, deadline: float
) -> None:
    """Further rounds over all that was measured, until there are enough or the time is over."""
    for _ in range(REPEATS - 1):
        for j, batch in enumerate(batches):
            for width, row in seconds.items():
                if j < len(row):
                    if time.monotonic() >= deadline:
                        return
                    row[j] = min(row[j], _time_pass(runner, _verifying_pass(runner, width, batch, context)))


def _without_excess(rows: list[list[float]]) -> list[list[float]]:
    """No pass costs more than a wider one or one of more sequences: what was measured beyond that was a disturbance."""
    for i in range(len(rows) - 1, -1, -1):
        for j in range(len(rows[i]) - 1, -1, -1):
            wider = rows[i + 1][j] if i + 1 < len(rows) and j < len(rows[i + 1]) else float("inf")
            larger = rows[i][j + 1] if j + 1 < len(rows[i]) else float("inf")
            rows[i][j] = min(rows[i][j], wider, larger)
    return rows


def context_costs(
    runner: ModelRunner, config: EngineConfig, context: int, longest: int, deadline: float
) -> tuple[float, float]:
    """The cost of context: seconds a sequence and cached position, and seconds a query token and such position.

    From a narrow and a wide pass, each at `context` and at a longer one. Zeros where there is no room for one, or no
    time until `deadline` (time.monotonic).
    """
    wide = min(LONG_WIDTH, config.max_block_length)
    batch = max(1, min(LONG_BATCH, config.max_running, config.max_batch_tokens // wide))
    room = runner.pool.num_pages // batch * runner.pool.page_size
    long = min(LONG_CONTEXT, longest - wide, room - wide)
    added = []
    for width in (1, wide):
        if long < 2 * context or time.monotonic() >= deadline:
            return 0.0, 0.0
        plans = (_verifying_pass(runner, width, batch, positions) for positions in (context, long))
        before, after = (min(_time_pass(runner, plan) for _ in range(REPEATS)) for plan in plans)
        added.append(max(after - before, 0.0) / ((long - context) * batch))
    narrow, broad = added
    per_pair = max(broad - narrow, 0.0) / (wide - 1)
    return max(narrow - per_pair, 0.0), per_pair


def _verifying_pass(runner: ModelRunner, width: int, batch: int, context: int) -> BatchPlan:
    pool = runner.pool
    num_pages = -(-(context + width) // pool.page_size)
    spans = []
    for row in range(batch):
        seq = Sequence.placeholder(row, [(row * num_pages + i) % pool.num_pages for i in range(num_pages)])
        spans.append(Span(seq, Phase.VERIFY, context, [0] * width, CAUSAL, num_logits=width))
    return BatchPlan([StepGroup("", Phase.VERIFY, width, spans)])


def _time_pass(runner: ModelRunner, plan: BatchPlan) -> float:
    """Seconds of the second of two passes: the first one finds other caches than passes of serving do."""
    now, took = clock_for(runner.pool.device).now, 0.0
    for _ in range(2):
        started = now()
        for group, logits in zip(plan.groups, runner.forward(plan), strict=True):
            if isinstance(logits, DividedLogits):
                logits.pick(PlainChoice.greedy(len(group.spans)), None).token_ids.cpu()
            elif logits is not None:
                logits.argmax(dim=-1).cpu()
        took = now() - started
    return took
