"""Scheduler: continuous batching at every denoising step. Queues, token budget, pages and preemption.

Between any two passes requests may join, finish or be preempted. A pass packs the decoding sequences' spans first and
prefill chunks into what is left of the token budget, of which a share is kept for prefill, so that neither starves the
other. Pages are taken before a span is planned; when there are none the youngest sequence of the lowest priority gives
up all of its own and is recomputed later. The cost of a step is linear in the sequences of the step.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping

from engine.batch import BatchPlan, Phase, Span
from engine.config import EngineConfig
from engine.decoding.contract import DecodingPolicy
from engine.decoding.policies.prefill import Prefill
from engine.decoding.results import StepOutcome
from engine.errors import IntegrityError, OutOfPages
from engine.events import GenerationEvent, StepStats
from engine.kv_cache.pages import PageAllocator
from engine.scheduling.grouping import count_tokens, group_spans, without_optional
from engine.scheduling.outcome import apply_outcome, count_plan, finish_event
from engine.scheduling.prefix_cache import PrefixCache
from engine.scheduling.waiting import WaitingQueue
from engine.sequence import Sequence, Status

PREFILL_SHARE = 4
"""While prompts wait, 1/PREFILL_SHARE of the token budget is theirs, however many sequences decode."""


class Scheduler:
    """Owns every sequence from `add` to its Finished event, and all bookkeeping of pages and page-table rows."""

    def __init__(
        self,
        config: EngineConfig,
        allocator: PageAllocator,
        policies: Mapping[str, DecodingPolicy],
        prefill: Prefill,
        clear_pages: Callable[[list[int]], None],
    ) -> None:
        """policies: by mode. clear_pages: zeroes pages on the device before the next pass; called for those that may
        hold non-finite values when their sequence leaves them."""
        self.config = config
        self.allocator = allocator
        self.policies = policies
        self.prefill = prefill
        self._prefix_cache = PrefixCache(allocator, clear_pages, enabled=config.prefix_caching)
        self._sequences: dict[str, Sequence] = {}
        self._waiting = WaitingQueue()
        self._prefilling: OrderedDict[Sequence, None] = OrderedDict()
        # Served sequences go to the back, so whoever did not fit into a pass is first in the next one.
        self._decoding: OrderedDict[Sequence, None] = OrderedDict()
        self._free_rows = list(range(config.max_running - 1, -1, -1))
        self._blocked: tuple[Sequence, int] | None = None
        """The waiting sequence that did not fit, and the spare pages there were. It is not tried again with no more."""
        self._preemptions = 0

    # --- requests -----------------------------------------------------------------------------------------------

    def add(self, seq: Sequence) -> None:
        """Queues a sequence. Raises KeyError if its request id is in use."""
        if seq.request.request_id in self._sequences:
            raise KeyError(f"request id {seq.request.request_id!r} is in use")
        self._sequences[seq.request.request_id] = seq
        self._waiting.push(seq)

    def abort(self, request_id: str) -> list[GenerationEvent]:
        """Drops a request between two passes and frees its pages. Unknown ids are ignored: the request may be done."""
        seq = self._sequences.get(request_id)
        if seq is None:
            return []
        self._finish(seq)
        return [finish_event(seq, "abort")]

    def __contains__(self, request_id: str) -> bool:
        """Whether a sequence of this request is waiting or running."""
        return request_id in self._sequences

    @property
    def has_work(self) -> bool:
        """Whether any sequence waits or runs."""
        return bool(self._sequences)

    @property
    def running(self) -> Iterator[Sequence]:
        """Sequences that hold pages."""
        yield from self._prefilling
        yield from self._decoding

    @property
    def num_running(self) -> int:
        return len(self._prefilling) + len(self._decoding)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    # --- planning -----------------------------------------------------------------------------------------------

    def schedule(self) -> BatchPlan:
        """The next pass; its plan is empty when nothing can run."""
        self._admit()
        planned: dict[Sequence, list[Span]] = {}
        budget = self.config.max_batch_tokens
        reserve = budget // PREFILL_SHARE if self._prefilling else 0
        for policy in self.policies.values():
            policy.begin_pass(self.num_running)
        used = self._plan_decoding(planned, budget - reserve)
        self._plan_prefilling(planned, budget - used)
        return group_spans(planned.values())

    def _admit(self) -> None:
        """Moves waiting sequences, best first, to prefill while rows and pages for all they hold so far are free."""
        while self._free_rows and (seq := self._waiting.first()) is not None:
            if not self._admit_one(seq):
                return
            self._waiting.pop()

    def _admit_one(self, seq: Sequence) -> bool:
        # Running sequences need about a page each before long: admitting into those would only preempt at once.
        spare = self.allocator.num_free - self.num_running
        if self._blocked is not None and self._blocked[0] is seq and spare <= self._blocked[1]:
            return False
        policy = self.policies[seq.mode]
        target = policy.cache_target(seq)
        # At least one prompt token has to be run for its logit, and no shared page may ever be written.
        pages = self._prefix_cache.match(seq, (target - policy.needs_anchor(seq)) // self.config.page_size)
        # A policy that needs nothing cached (today's all need the prompt) starts with its first span: pages for that.
        missing = self._pages_for(target or policy.positions_wanted(seq)) - len(pages)
        if self.allocator.num_free - self.num_running < missing:
            self.allocator.release(pages)
            self._blocked = (seq, spare)
            return False
        seq.num_registered = len(pages)
        seq.num_cached = len(pages) * self.config.page_size
        seq.pages = pages + self.allocator.allocate(missing)
        seq.row, seq.num_mapped = self._free_rows.pop(), 0
        if not seq.admitted:
            seq.admitted = True
            seq.stats.cached_tokens = seq.num_cached
            seq.stats.queue_seconds = time.monotonic() - seq.received_at
        if seq.num_cached < target:
            seq.status = Status.PREFILLING
            self._prefilling[seq] = None
        else:
            seq.status = Status.DECODING
            self._decoding[seq] = None
        return True

    def _plan_decoding(self, planned: dict[Sequence, list[Span]], budget: int) -> int:
        """Plans decoding sequences in turn, up to the first that does not fit. Returns the tokens used."""
        used = 0
        for seq in list(self._decoding):
            if seq.status is not Status.DECODING:
                continue  # preempted for the sake of an earlier one
            spans = self.policies[seq.mode].plan(seq)
            needed = count_tokens(spans)
            if needed > budget - used:
                spans = without_optional(spans)
                needed = count_tokens(spans)
                if needed > budget - used:
                    break
            if not self._reserve(seq, spans, planned):
                continue
            self._decoding.move_to_end(seq)
            planned[seq] = spans
            used += needed
        return used

    def _plan_prefilling(self, planned: dict[Sequence, list[Span]], budget: int) -> None:
        """Gives what is left of the budget to prompts, first come first served. Their pages are theirs already.

        One prompt a pass is scored: rows of logits are what such a chunk takes memory for.
        """
        scoring = False
        for seq in self._prefilling:
            if budget < self.prefill.block_length:
                return
            if seq.scores_prompt:
                if scoring:
                    continue
                scoring = True
            span = self.prefill.chunk(seq, budget)
            planned[seq] = [span]
            budget -= len(span.token_ids)

    def _reserve(self, seq: Sequence, spans: list[Span], planned: dict[Sequence, list[Span]]) -> bool:
        """Makes sure the sequence has pages for its spans, preempting the youngest if need be.

        Returns False if the sequence itself was the youngest and is no longer running.
        """
        last = spans[0].kv_end if len(spans) == 1 else max(span.kv_end for span in spans)
        missing = self._pages_for(last) - len(seq.pages)
        while missing > 0:
            try:
                seq.pages += self.allocator.allocate(missing)
                return True
            except OutOfPages:
                if spans[-1].optional:
                    spans[:] = without_optional(spans)
                    missing = self._pages_for(spans[0].kv_end) - len(seq.pages)
                    continue
                victim = max(self.running, key=lambda other: other.order)
                planned.pop(victim, None)
                self._preempt(victim)
                if victim is seq:
                    return False
        return True

    def _preempt(self, seq: Sequence) -> None:
        """Takes all pages away. What has settled, and the open block, stay: the answer does not change."""
        self._release(seq)
        seq.status, seq.next_block = Status.WAITING, None
        seq.stats.preemptions += 1
        self._preemptions += 1
        self._waiting.push(seq)

    # --- what a pass changed ------------------------------------------------------------------------------------

    def apply(self, plan: BatchPlan, outcomes: list[StepOutcome]) -> tuple[list[GenerationEvent], StepStats]:
        """Applies the outcomes of a pass, in the order of its spans; frees what finished; says what happened."""
        events: list[GenerationEvent] = []
        stats = StepStats(running=0, waiting=0, free_pages=0, num_pages=self.allocator.num_pages)
        count_plan(plan, stats)
        for outcome in outcomes:
            seq = outcome.span.seq
            if seq.status is Status.FINISHED:
                continue  # an earlier span of this pass finished it
            finished = apply_outcome(outcome, events, stats)
            verified = outcome.finite and outcome.error is None and outcome.span.num_logits > 0
            self._prefix_cache.record(seq, verified=verified)
            if finished:
                self._finish(seq)
            else:
                self._after_step(outcome)
        stats.running, stats.waiting = self.num_running, self.num_waiting
        stats.free_pages = self.allocator.num_free
        stats.preemptions, self._preemptions = self._preemptions, 0
        return events, stats

    def _after_step(self, outcome: StepOutcome) -> None:
        seq = outcome.span.seq
        policy = self.policies[seq.mode]
        if outcome.span.phase is Phase.PREFILL and seq.num_cached >= policy.cache_target(seq):
            del self._prefilling[seq]
            seq.status = Status.DECODING
            self._decoding[seq] = None
            if not seq.stats.prefill_seconds:
                seq.stats.prefill_seconds = time.monotonic() - seq.received_at - seq.stats.queue_seconds
        if outcome.accepted is not None and seq.block is None:
            self._give_back(seq, self._pages_for(policy.positions_wanted(seq)))

    def _give_back(self, seq: Sequence, keep: int) -> None:
        """After a rejection: gives back pages that the next block cannot reach."""
        if keep < len(seq.pages):
            self.allocator.release(seq.pages[keep:])
            del seq.pages[keep:]
            seq.num_mapped = min(seq.num_mapped, keep)

    def _finish(self, seq: Sequence) -> None:
        del self._sequences[seq.request.request_id]
        if seq.status is Status.WAITING:
            self._waiting.forget()
        else:
            self._release(seq)
        seq.status = Status.FINISHED

    # --- common -------------------------------------------------------------------------------------------------

    def _release(self, seq: Sequence) -> None:
        """Takes a running sequence off its queue and gives back its pages and row."""
        del (self._prefilling if seq.status is Status.PREFILLING else self._decoding)[seq]
        self._prefix_cache.leave(seq)
        self.allocator.release(seq.pages)
        self._free_rows.append(seq.row)
        seq.pages, seq.row, seq.num_cached, seq.num_mapped, seq.frozen_block = [], -1, 0, 0, -1

    def _pages_for(self, positions: int) -> int:
        return -(-positions // self.config.page_size)

    def check_integrity(self) -> None:
        """Raises IntegrityError unless pages, rows and queues agree. O(pages): for tests and debugging."""
        self.allocator.check_integrity([seq.pages for seq in self.running])
        rows = [seq.row for seq in self.running] + self._free_rows
        if sorted(rows) != list(range(self.config.max_running)):
            raise IntegrityError(f"page-table rows are lost or shared: {sorted(rows)}")
        if self.num_running + self.num_waiting != len(self._sequences):
            raise IntegrityError("a sequence is in no queue, or in two")
