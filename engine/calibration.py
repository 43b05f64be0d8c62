"""Measures what a pass costs on this machine, by width and batch, for the decoding policy that adapts to it."""

from __future__ import annotations

import time
from dataclasses import replace

from engine.batch import BatchPlan, Phase, Span, StepGroup
from engine.config import EngineConfig
from engine.decoding.base import DecodingPolicy
from engine.decoding.width import CostTable
from engine.model_runner import ModelRunner
from engine.request import Request
from engine.sequence import Sequence

CONTEXT = 128
"""Tokens of context the measured passes attend to."""
LONG_CONTEXT = 1024
"""Tokens of context, at most, of the passes that tell what context costs."""
LONG_BATCH = 8
"""Sequences in those, at most."""
REPEATS = 3


def measure_costs(runner: ModelRunner, config: EngineConfig, policy: DecodingPolicy, max_model_len: int) -> CostTable:
    """Times verifying passes, narrow and small ones first, for about `config.calibration_seconds`.

    Call it before any request is served: it scribbles on pages and page-table rows. Combinations that the budget of
    time or of tokens does not reach are left to the table's extrapolation.
    """
    widths = [1 << i for i in range(config.max_block_length.bit_length()) if 1 << i <= config.max_block_length]
    batches = [1 << i for i in range(config.max_running.bit_length()) if 1 << i <= config.max_running]
    widths = [width for width in widths if width <= max_model_len]
    context = min(CONTEXT, max_model_len - widths[-1])
    seconds: dict[int, list[float]] = {width: [] for width in widths}
    deadline = time.monotonic() + config.calibration_seconds
    for batch in batches:
        for width in widths:
            reached = len(seconds[width]) == batches.index(batch)
            fits = batch * width <= config.max_batch_tokens
            if reached and (batch == 1 or (fits and time.monotonic() < deadline)):
                plan = _verifying_pass(runner, policy, width, batch, context)
                seconds[width].append(_time_pass(runner, plan))
    measured = tuple(tuple(seconds[width]) for width in widths)
    table = CostTable(tuple(widths), tuple(batches), measured, context)
    return with_context_costs(table, runner, config, policy, max_model_len)


def with_context_costs(
    table: CostTable, runner: ModelRunner, config: EngineConfig, policy: DecodingPolicy, max_model_len: int
) -> CostTable:
    """The table, with what a longer context adds: from a narrow and a wide pass, each at a short and a long context."""
    narrow, wide = table.widths[0], table.widths[-1]
    batch = min(LONG_BATCH, config.max_running, config.max_batch_tokens // wide)
    pages = runner.pool.num_pages * runner.pool.page_size // batch
    long = min(LONG_CONTEXT, max_model_len - wide, pages - wide)
    more = long - table.context
    if narrow == wide or more < table.context:
        return table  # too little to tell by

    def added(width: int) -> float:
        """Seconds a sequence and position."""
        plans = (_verifying_pass(runner, policy, width, batch, context) for context in (table.context, long))
        before, after = (_time_pass(runner, plan) for plan in plans)
        return max(after - before, 0.0) / (more * batch)

    low, high = added(narrow), added(wide)
    per_pair = max(high - low, 0.0) / (wide - narrow)
    return replace(table, per_position=max(low - per_pair * narrow, 0.0), per_pair=per_pair)


def _verifying_pass(runner: ModelRunner, policy: DecodingPolicy, width: int, batch: int, context: int) -> BatchPlan:
    pool = runner.pool
    num_pages = -(-(context + width) // pool.page_size)
    spans = []
    for row in range(batch):
        request = Request(request_id=f"calibration-{row}", prompt_token_ids=[0], max_tokens=1)
        seq = Sequence(request, policy, frozenset(), row, row=row)
        seq.pages = [(row * num_pages + i) % pool.num_pages for i in range(num_pages)]
        spans.append(Span(seq, Phase.VERIFY, context, [0] * width, kv_limit=None, num_logits=width))
    return BatchPlan([StepGroup(policy, Phase.VERIFY, width, spans)])


def _time_pass(runner: ModelRunner, plan: BatchPlan) -> float:
    """Seconds of the fastest of a few passes, the first one not counted."""
    times = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        for logits in runner.forward(plan):
            if logits is not None:
                logits.argmax(dim=-1).cpu()
        times.append(time.perf_counter() - started)
    return min(times[1:])
