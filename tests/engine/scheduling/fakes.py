"""A scheduler without a model: policies that plan real spans, and outcomes that depend on the request alone.

The token at a position is a function of (request id, position), so whatever the scheduler does to a sequence, a right
answer is known.
"""

from __future__ import annotations

import zlib
from typing import Any

import msgspec
import torch

from engine.batch import CAUSAL, BatchPlan, KVLimits, Phase, Span, StepGroup
from engine.config import EngineConfig
from engine.decoding.causal_steps import decode_span
from engine.decoding.contract import DecodingPolicy
from engine.decoding.policies.prefill import Prefill
from engine.decoding.results import Choices, HostChoices, StepOutcome
from engine.events import Finished, GenerationEvent, StepStats
from engine.kv_cache.pages import PageAllocator
from engine.request import DecodingParams, Request
from engine.scheduling.scheduler import Scheduler
from engine.sequence import Block, Sequence

NEVER: Any = None
"""Stands for a sampler: no logits are ever made here."""


def token_at(request_id: str, position: int) -> int:
    return 6 + _hash(request_id, position) % 1000


def _hash(*key: object) -> int:
    return zlib.crc32(repr(key).encode())


class FakePolicy(DecodingPolicy):
    """What real policies have in common, to the scheduler: spans in, settled tokens out."""

    def __init__(self, mode: str) -> None:
        """mode: names the policy with all its settings, so that two of one mode are alike."""
        super().__init__(NEVER, 5)
        self.mode = mode
        POLICIES[mode] = self

    def decide(self, group: StepGroup, logits: torch.Tensor) -> Choices:
        raise NotImplementedError

    def conclude(self, span: Span, choices: HostChoices, i: int) -> StepOutcome:
        raise NotImplementedError

    def outcome(self, span: Span) -> StepOutcome:
        """One more token."""
        return StepOutcome(span, [next_token(span.seq)], num_cached=span.end)


POLICIES: dict[str, FakePolicy] = {}
"""By mode: all that have been made. Schedulers of tests know every one."""


class Plain(FakePolicy):
    """One token a pass."""

    def __init__(self) -> None:
        super().__init__("plain")

    def plan(self, seq: Sequence) -> list[Span]:
        return [decode_span(seq)]


class Drafting(FakePolicy):
    """Verifies `width` tokens a pass and accepts some of them; may ask for an optional second span."""

    def __init__(self, width: int, *, second: bool = False, accepts: int | None = None) -> None:
        super().__init__(f"drafting {width} {second} {accepts}")
        self.width, self.second, self.accepts = width, second, accepts

    def plan(self, seq: Sequence) -> list[Span]:
        start, width = len(seq.token_ids) - 1, min(self.width, seq.num_remaining)
        seq.next_block = None
        spans = [Span(seq, Phase.VERIFY, start, [0] * width, CAUSAL, num_logits=width)]
        ahead = min(self.width, seq.num_remaining - width)
        if self.second and ahead > 0:
            seq.next_block = Block.fresh(start + width, ahead, 1, awaits_anchor=True)
            limits = KVLimits.up_to(seq.next_block.end)
            spans.append(
                Span(seq, Phase.DRAFT, start + width, [0] * ahead, limits, num_logits=ahead, second=True, optional=True)
            )
        return spans

    def outcome(self, span: Span) -> StepOutcome:
        if span.phase is Phase.DRAFT:
            return StepOutcome(span)
        seq, drafted = span.seq, len(span.token_ids) - 1
        accepted = _hash(seq.request.request_id, span.start, "accepted") % (drafted + 1)
        accepted = min(drafted, self.accepts if self.accepts is not None else accepted)
        seq.next_block = None
        tokens = [token_at(seq.request.request_id, len(seq.token_ids) + i) for i in range(accepted + 1)]
        return StepOutcome(span, tokens, num_cached=span.start + accepted + 1, drafted=drafted, accepted=accepted)


class Window(FakePolicy):
    """Encodes prompt and answer anew in every pass, in which the whole answer settles: nothing is ever cached."""

    def __init__(self) -> None:
        super().__init__("window")

    def cache_target(self, seq: Sequence) -> int:
        return 0

    def needs_anchor(self, seq: Sequence) -> bool:
        return False

    def positions_wanted(self, seq: Sequence) -> int:
        return seq.num_prompt + seq.request.max_tokens

    def plan(self, seq: Sequence) -> list[Span]:
        end = self.positions_wanted(seq)
        return [Span(seq, Phase.DENOISE, 0, [0] * end, KVLimits.up_to(end), num_logits=end)]

    def outcome(self, span: Span) -> StepOutcome:
        seq = span.seq
        return StepOutcome(span, [token_at(seq.request.request_id, p) for p in range(seq.num_prompt, span.end)])


class Refining(FakePolicy):
    """Looks at a block `steps` times before all of it settles at once; then one pass commits it."""

    def __init__(self, width: int, steps: int) -> None:
        super().__init__(f"refining {width} {steps}")
        self.width, self.steps = width, steps

    def plan(self, seq: Sequence) -> list[Span]:
        if seq.block is None:
            width = min(self.width, seq.num_remaining + 1)
            seq.block = Block.fresh(len(seq.token_ids) - 1, width, 0, seq.token_ids[-1])
        block = seq.block
        if any(block.masked):
            limits = KVLimits.up_to(block.end)
            return [Span(seq, Phase.DENOISE, block.start, [0] * len(block), limits, num_logits=len(block))]
        return [
            Span(seq, Phase.COMMIT, block.start, [0] * len(block), CAUSAL, num_logits=1, logit_start=len(block) - 1)
        ]

    def outcome(self, span: Span) -> StepOutcome:
        seq, block = span.seq, span.seq.block
        assert block is not None
        if span.phase is Phase.COMMIT:
            seq.block = None
            return super().outcome(span)
        block.steps += 1
        if block.steps < self.steps:
            return StepOutcome(span)
        block.masked = [False] * len(block)
        return StepOutcome(span, [token_at(seq.request.request_id, p) for p in range(block.start + 1, block.end)])


def next_token(seq: Sequence) -> int:
    return token_at(seq.request.request_id, len(seq.token_ids))


def outcomes_of(plan: BatchPlan) -> list[StepOutcome]:
    """What a model would have led to, in plan order."""
    outcomes = []
    for span in plan.spans:
        if span.phase is Phase.PREFILL:
            tokens = [next_token(span.seq)] if span.num_logits else []
            outcomes.append(StepOutcome(span, tokens, num_cached=span.end))
        else:
            outcomes.append(POLICIES[span.seq.mode].outcome(span))
    return outcomes


def make_scheduler(cleared: list[int] | None = None, **fields: Any) -> Scheduler:
    """A scheduler with a pool of `kv_cache_tokens`; by default 16 pages of 4. cleared: gets the pages it has zeroed."""
    settings = {"page_size": 4, "kv_cache_tokens": 64, "max_batch_tokens": 64, "max_running": 8} | fields
    config = EngineConfig(**settings)
    allocator = PageAllocator(settings["kv_cache_tokens"] // config.page_size, config.page_size, config.prefix_caching)
    clear = ([] if cleared is None else cleared).extend
    return Scheduler(config, allocator, POLICIES, Prefill(NEVER, POLICIES), clear)


class Arrivals:
    """Makes sequences, numbered as they come."""

    def __init__(self) -> None:
        self.count = 0

    def make(
        self, request_id: str, prompt: int | list[int], policy: FakePolicy, max_tokens: int, **fields: Any
    ) -> Sequence:
        """`prompt`: token ids, or how many of its own."""
        ids = [token_at(request_id, p) for p in range(prompt)] if isinstance(prompt, int) else prompt
        decoding = fields.pop("decoding", DecodingParams())
        decoding = msgspec.structs.replace(decoding, mode=policy.mode)
        request = Request(
            request_id=request_id, prompt_token_ids=ids, max_tokens=max_tokens, decoding=decoding, **fields
        )
        self.count += 1
        return Sequence(request, frozenset(), self.count)


def run_step(scheduler: Scheduler) -> tuple[BatchPlan, list[GenerationEvent], StepStats]:
    """One pass of the loop, books checked."""
    plan = scheduler.schedule()
    scheduler.check_integrity()
    events, stats = scheduler.apply(plan, outcomes_of(plan))
    scheduler.check_integrity()
    return plan, events, stats


def spans_of(plan: BatchPlan) -> list[tuple[str, str, int]]:
    """(request id, phase, tokens) of each span, in batch order."""
    return [(span.seq.request.request_id, span.phase.value, len(span.token_ids)) for span in plan.spans]


def run_until_idle(scheduler: Scheduler) -> list[Finished]:
    finished: list[Finished] = []
    for _ in range(1000):
        if not scheduler.has_work:
            break
        finished += [event for event in run_step(scheduler)[1] if isinstance(event, Finished)]
    assert not scheduler.has_work
    assert scheduler.allocator.num_free == scheduler.allocator.num_pages, "pages are lost"
    return finished
