"""Continuous batching at every denoising step: which sequences take part in the next pass, and what a pass changed.

Between any two passes requests may join, finish or be preempted. A pass packs the decoding sequences' spans first and
prefill chunks into what is left of the token budget, of which a share is kept for prefill, so that neither starves the
other. Pages are taken before a span is planned; when there are none the youngest sequence of the lowest priority gives
up all of its own and is recomputed later. The cost of a step is linear in the sequences of the step.
"""

from __future__ import annotations

import heapq
import time
from collections import OrderedDict
from collections.abc import Iterator

from engine.batch import BatchPlan, Phase, Span, StepGroup
from engine.config import EngineConfig
from engine.decoding.contract import StepOutcome
from engine.decoding.prefill import Prefill, needs_seed, prefill_target
from engine.errors import OutOfPages
from engine.events import GenerationEvent, StepStats
from engine.kv_cache.pages import PageAllocator
from engine.scheduling.outcome import apply_outcome, count_plan, finish_event
from engine.sequence import Sequence

PREFILL_SHARE = 4
"""While prompts wait, one token in so many of the budget is theirs, however many sequences decode."""

# Within a pass the causal spans come first: a shared pass's second span depends on what the first one settles.
_PHASE_ORDER = {phase: i for i, phase in enumerate(
    (Phase.PREFILL, Phase.DECODE, Phase.COMMIT, Phase.VERIFY, Phase.DENOISE, Phase.DRAFT)
)}  # fmt: skip


class Scheduler:
    """Owns every sequence from `add` to its Finished event, and all bookkeeping of pages and page-table rows."""

    def __init__(self, config: EngineConfig, allocator: PageAllocator, prefill: Prefill) -> None:
        self.config = config
        self.allocator = allocator
        self.prefill = prefill
        self._sequences: dict[str, Sequence] = {}
        self._waiting: list[
            tuple[tuple[int, int], Sequence]
        ] = []  # heap; finished entries are skipped when they surface
        self._num_waiting = 0
        self._prefilling: OrderedDict[Sequence, None] = OrderedDict()
        # Served sequences go to the back, so whoever did not fit into a pass is first in the next one.
        self._decoding: OrderedDict[Sequence, None] = OrderedDict()
        self._free_rows = list(range(config.max_running - 1, -1, -1))
        self._blocked: tuple[Sequence, int] | None = None
        """The waiting sequence that did not fit, and the spare pages there were: no use trying again with no more."""
        self._preemptions = 0
        self.poisoned_pages: list[int] = []
        """Pages that may hold non-finite values: to be zeroed before the next pass, whoever owns them by then."""

    # --- requests -----------------------------------------------------------------------------------------------

    def add(self, seq: Sequence) -> None:
        """Queues a sequence. Raises KeyError if its request id is in use."""
        if seq.request.request_id in self._sequences:
            raise KeyError(f"request id {seq.request.request_id!r} is in use")
        self._sequences[seq.request.request_id] = seq
        self._enqueue(seq)

    def abort(self, request_id: str) -> list[GenerationEvent]:
        """Drops a request between two passes and frees its pages. Unknown ids are ignored: the request may be done."""
        seq = self._sequences.get(request_id)
        if seq is None:
            return []
        self._distrust(seq)
        self._finish(seq)
        return [finish_event(seq, "abort")]

    @property
    def has_work(self) -> bool:
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
        return self._num_waiting

    # --- planning -----------------------------------------------------------------------------------------------

    def schedule(self) -> BatchPlan:
        """The next pass; its plan is empty when nothing can run."""
        self._admit()
        planned: dict[Sequence, list[Span]] = {}
        budget = self.config.max_batch_tokens
        reserve = budget // PREFILL_SHARE if self._prefilling else 0
        used = self._plan_decoding(planned, budget - reserve)
        self._plan_prefilling(planned, budget - used)
        return self._group(planned)

    def _admit(self) -> None:
        """Moves waiting sequences, best first, to prefill while rows and pages for all they hold so far are free."""
        while self._waiting and self._free_rows:
            seq = self._waiting[0][1]
            if self._sequences.get(seq.request.request_id) is not seq:
                heapq.heappop(self._waiting)  # aborted while it waited
                continue
            if not self._admit_one(seq):
                return
            heapq.heappop(self._waiting)
            self._num_waiting -= 1

    def _admit_one(self, seq: Sequence) -> bool:
        # Running sequences need about a page each before long: admitting into those would only preempt at once.
        spare = self.allocator.num_free - self.num_running
        if self._blocked is not None and self._blocked[0] is seq and spare <= self._blocked[1]:
            return False
        target = prefill_target(seq)
        # At least one prompt token has to be run for its logit, and no shared page may ever be written.
        limit = (target - needs_seed(seq)) // self.config.page_size
        pages: list[int] = []
        if self.config.prefix_caching and not seq.scores_prompt:
            self.allocator.extend_hashes(seq.page_hashes, seq.token_ids, seq.request.cache_salt, limit)
            pages = self.allocator.match(seq.page_hashes, limit)
        missing = self._pages_for(target) - len(pages)
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
        (self._prefilling if seq.num_cached < target else self._decoding)[seq] = None
        return True

    def _plan_decoding(self, planned: dict[Sequence, list[Span]], budget: int) -> int:
        """Plans decoding sequences in turn. Returns the tokens used."""
        used = 0
        for seq in list(self._decoding):
            if seq not in self._decoding:
                continue  # preempted for the sake of an earlier one
            spans = seq.policy.plan(seq, self.num_running)
            needed = _num_tokens(spans)
            if needed > budget - used:
                spans = _without_optional(seq, spans)
                needed = _num_tokens(spans)
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
            if budget <= 0:
                return
            if seq.scores_prompt:
                if scoring:
                    continue
                scoring = True
            span = self.prefill.chunk(seq, budget)
            planned[seq] = [span]
            budget -= len(span.token_ids)

    def _group(self, planned: dict[Sequence, list[Span]]) -> BatchPlan:
        """Step groups: spans of the same policy, phase and count of logit rows, contiguous, causal phases first."""
        groups: dict[tuple[int, Phase, int], StepGroup] = {}
        for seq, spans in planned.items():
            for span in spans:
                policy = self.prefill if span.phase is Phase.PREFILL else seq.policy
                key = (id(policy), span.phase, span.num_logits)
                if key not in groups:
                    groups[key] = StepGroup(policy, span.phase, span.num_logits)
                groups[key].spans.append(span)
        return BatchPlan(sorted(groups.values(), key=lambda group: _PHASE_ORDER[group.phase]))

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
                    spans[:] = _without_optional(seq, spans)
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
        self._distrust(seq)
        self._release(seq)
        seq.next_block = None
        seq.stats.preemptions += 1
        self._preemptions += 1
        self._enqueue(seq)

    # --- what a pass changed ------------------------------------------------------------------------------------

    def apply(self, plan: BatchPlan, outcomes: list[StepOutcome]) -> tuple[list[GenerationEvent], StepStats]:
        """Applies the outcomes of a pass, in the order of its spans; frees what finished; says what happened."""
        events: list[GenerationEvent] = []
        stats = StepStats(running=0, waiting=0, free_pages=0, num_pages=self.allocator.num_pages)
        count_plan(plan, stats)
        for outcome in outcomes:
            seq = outcome.span.seq
            if self._sequences.get(seq.request.request_id) is not seq:
                continue  # an earlier span of this pass finished it
            finished = apply_outcome(outcome, events, stats)
            if finished:
                seq.unverified = not outcome.finite or outcome.error is not None
                if not seq.unverified:
                    self._register(outcome)
                self._distrust(seq)
                self._finish(seq)
                continue
            seq.unverified = not outcome.span.num_logits
            self._after_step(outcome)
        stats.running, stats.waiting = self.num_running, self.num_waiting
        stats.free_pages, stats.cached_pages = self.allocator.num_free, self.allocator.num_cached
        stats.preemptions, self._preemptions = self._preemptions, 0
        return events, stats

    def _after_step(self, outcome: StepOutcome) -> None:
        seq = outcome.span.seq
        if outcome.span.phase is Phase.PREFILL and seq.num_cached >= prefill_target(seq):
            del self._prefilling[seq]
            self._decoding[seq] = None
        self._register(outcome)
        if outcome.accepted is not None and seq.block is None:
            self._crop(seq)

    def _register(self, outcome: StepOutcome) -> None:
        """Offers newly full pages to the prefix cache. Only after finite logits: a poisoned page is never shared."""
        seq = outcome.span.seq
        # A verification may have cached tokens beyond the end token that the answer was cut at.
        full = min(seq.num_cached, len(seq.token_ids)) // self.config.page_size
        if not outcome.span.num_logits or full <= seq.num_registered or not self.config.prefix_caching:
            return
        self.allocator.extend_hashes(seq.page_hashes, seq.token_ids, seq.request.cache_salt, full)
        for i in range(seq.num_registered, full):
            self.allocator.register(seq.pages[i], seq.page_hashes[i])
        seq.num_registered = full

    def _distrust(self, seq: Sequence) -> None:
        """Marks the private pages of a sequence that leaves before finite logits have vouched for them."""
        if seq.unverified:
            self.poisoned_pages += seq.pages[seq.num_registered :]

    def _crop(self, seq: Sequence) -> None:
        """After a rejection: gives back pages that the next canvas cannot reach."""
        reach = seq.num_cached + min(seq.request.decoding.block_length, seq.num_remaining + 1)
        keep = self._pages_for(reach)
        if keep < len(seq.pages):
            self.allocator.release(seq.pages[keep:])
            del seq.pages[keep:]
            seq.num_mapped = min(seq.num_mapped, keep)

    def _finish(self, seq: Sequence) -> None:
        del self._sequences[seq.request.request_id]
        if seq.row >= 0:
            self._release(seq)
        else:
            self._num_waiting -= 1

    # --- common -------------------------------------------------------------------------------------------------

    def _enqueue(self, seq: Sequence) -> None:
        heapq.heappush(self._waiting, (seq.order, seq))
        self._num_waiting += 1

    def _release(self, seq: Sequence) -> None:
        """Takes a running sequence off its queue and gives back its pages and row."""
        del (self._prefilling if seq in self._prefilling else self._decoding)[seq]
        self.allocator.release(seq.pages)
        self._free_rows.append(seq.row)
        seq.pages, seq.row, seq.num_cached, seq.num_mapped, seq.num_registered = [], -1, 0, 0, 0
        seq.unverified = False

    def _pages_for(self, positions: int) -> int:
        return -(-positions // self.config.page_size)

    def check_integrity(self) -> None:
        """Raises IntegrityError unless pages, rows and queues agree. O(pages): for tests and debugging."""
        self.allocator.check_integrity([seq.pages for seq in self.running])
        rows = [seq.row for seq in self.running] + self._free_rows
        if sorted(rows) != list(range(self.config.max_running)):
            raise AssertionError(f"page-table rows are lost or shared: {sorted(rows)}")
        if self.num_running + self.num_waiting != len(self._sequences):
            raise AssertionError("a sequence is in no queue, or in two")


def _num_tokens(spans: list[Span]) -> int:
    return len(spans[0].token_ids) if len(spans) == 1 else sum(len(span.token_ids) for span in spans)


def _without_optional(seq: Sequence, spans: list[Span]) -> list[Span]:
    """Drops the optional half of a shared pass, and the canvas it would have refined."""
    if spans[-1].optional:
        seq.next_block = None
        return spans[:-1]
    return spans
