"""Whatever comes, in whatever order, into however small a pool: nobody starves, and nothing is lost or exceeded."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batch import BatchPlan, Phase
from engine.events import Finished, TokensSettled
from engine.scheduling.scheduler import PREFILL_SHARE, Scheduler
from engine.sequence import Sequence
from tests.engine.scheduling.fakes import (
    Arrivals,
    Drafting,
    FakePolicy,
    Plain,
    Refining,
    make_scheduler,
    outcomes_of,
    token_at,
)

MODEL_LEN, WIDEST = 90, 8
MOST_STEPS = 2000
POLICIES = st.one_of(
    st.just(Plain),
    st.builds(lambda width, second: lambda: Drafting(width, second=second), st.integers(2, WIDEST), st.booleans()),
    st.builds(lambda width, steps: lambda: Refining(width, steps), st.integers(2, WIDEST), st.integers(1, 6)),
)


@dataclass(frozen=True)
class Guest:
    """One request to come."""

    policy: Any
    prompt: int
    max_tokens: int
    priority: int
    arrival: int
    abort_after: int | None


@dataclass
class Watch:
    """Checks every step from outside."""

    scheduler: Scheduler
    tokens: dict[str, list[int]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    unserved: dict[Sequence, int] = field(default_factory=dict)
    longest_unserved: int = 0
    victims: int = 0

    def step(self) -> None:
        scheduler = self.scheduler
        waiting = [seq for seq in scheduler._sequences.values() if seq.row < 0]
        before = set(scheduler.running)
        plan = scheduler.schedule()
        scheduler.check_integrity()
        running = set(scheduler.running)
        self.check_admission(waiting, running)
        self.check_victims(before - running, running)
        self.check_plan(plan, running)
        self.check_service(plan)
        events, stats = scheduler.apply(plan, outcomes_of(plan))
        scheduler.check_integrity()
        assert stats.tokens == plan.num_tokens
        assert (stats.running, stats.waiting) == (scheduler.num_running, scheduler.num_waiting)
        for event in events:
            assert event.request_id not in self.reasons, "an event after the last one"
            if isinstance(event, TokensSettled):
                self.tokens.setdefault(event.request_id, []).extend(event.token_ids)
            elif isinstance(event, Finished):
                self.reasons[event.request_id] = event.reason

    def check_admission(self, waiting: list[Sequence], running: set[Sequence]) -> None:
        """By priority, then by arrival: nobody is overtaken."""
        admitted = [seq.order for seq in waiting if seq in running]
        left = [seq.order for seq in waiting if seq not in running]
        assert not admitted or not left or max(admitted) < min(left), "a request was overtaken while it waited"

    def check_victims(self, victims: set[Sequence], survivors: set[Sequence]) -> None:
        """Only the youngest of the lowest priority give up their pages."""
        self.victims += len(victims)
        assert not victims or all(seq.order < min(victim.order for victim in victims) for seq in survivors), (
            "an older or more important request was preempted"
        )

    def check_plan(self, plan: BatchPlan, running: set[Sequence]) -> None:
        """Within the budget, only running sequences, and all pages there and private."""
        config = self.scheduler.config
        assert plan.num_tokens <= config.max_batch_tokens
        owners = {page: [seq for seq in running if page in seq.pages] for seq in running for page in seq.pages}
        for span in plan.spans:
            assert span.seq in running, "a preempted sequence is in the plan"
            assert len(span.seq.pages) * config.page_size >= span.kv_end, "a span reaches beyond its pages"
            for page in span.seq.pages[span.start // config.page_size : -(-span.end // config.page_size)]:
                assert owners[page] == [span.seq], "a shared page would be written"

    def check_service(self, plan: BatchPlan) -> None:
        """Prefill keeps its share; each decoding sequence has its turn before any other has it twice."""
        scheduler = self.scheduler
        served = {span.seq for span in plan.spans}
        prefilling, decoding = list(scheduler._prefilling), list(scheduler._decoding)
        to_do = sum(scheduler.policies[seq.mode].cache_target(seq) - seq.num_cached for seq in prefilling)
        prefilled = sum(len(span.token_ids) for span in plan.spans if span.phase is Phase.PREFILL)
        assert prefilled >= min(to_do, scheduler.config.max_batch_tokens // PREFILL_SHARE), "prefill starves"
        assert not decoding or served & set(decoding), "decoding starves"
        self.unserved = {seq: 0 if seq in served else self.unserved.get(seq, 0) + 1 for seq in decoding}
        self.longest_unserved = max(self.longest_unserved, *self.unserved.values(), 0)
        assert self.longest_unserved < scheduler.config.max_running, "a decoding sequence starves"


GUESTS = st.builds(
    Guest,
    policy=POLICIES,
    prompt=st.integers(1, 30),
    max_tokens=st.sampled_from((1, 2, 9, 30, 60)),
    priority=st.sampled_from((0, 0, 0, -1, 2)),
    arrival=st.sampled_from((0, 0, 1, 5, 15)),
    abort_after=st.one_of(st.none(), st.none(), st.integers(0, 25)),
)

CROWDS = st.builds(
    lambda guest, gaps: [replace(guest, arrival=sum(gaps[: i + 1])) for i in range(len(gaps))],
    GUESTS,
    st.lists(st.integers(0, 2), min_size=4, max_size=12),
)
"""Requests of one kind: many that are as wide, as long and as important as each other."""


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(
    guests=st.one_of(st.lists(GUESTS, min_size=1, max_size=12), CROWDS),
    page_size=st.sampled_from((1, 4, 16)),
    spare=st.sampled_from((4, 16, 40, 200)),
    budget=st.sampled_from((22, 22, 32, 100)),
    max_running=st.integers(1, 6),
)
def test_everybody_is_served_and_nothing_is_lost(
    guests: list[Guest], page_size: int, spare: int, budget: int, max_running: int
) -> None:
    """A request would hang, get somebody else's tokens, or cost the server pages until it stands still."""
    scheduler = make_scheduler(
        page_size=page_size,
        kv_cache_tokens=-(-MODEL_LEN // page_size) * page_size + spare,  # the longest request fits, in whole pages
        max_batch_tokens=budget,
        max_running=max_running,
    )
    arrivals, watch, steps = Arrivals(), Watch(scheduler), 0
    while steps <= max(guest.arrival for guest in guests) or scheduler.has_work:
        for i, guest in enumerate(guests):
            if guest.arrival == steps:
                policy: FakePolicy = guest.policy()
                scheduler.add(arrivals.make(f"g{i}", guest.prompt, policy, guest.max_tokens, priority=guest.priority))
            if guest.abort_after is not None and guest.arrival + guest.abort_after == steps:
                for event in scheduler.abort(f"g{i}"):
                    assert isinstance(event, Finished)
                    watch.reasons[event.request_id] = event.reason
                scheduler.check_integrity()
        watch.step()
        steps += 1
        assert steps < MOST_STEPS, "the scheduler does not come to an end"
    assert scheduler.allocator.num_free == scheduler.allocator.num_pages, "pages are lost"
    for i, guest in enumerate(guests):
        expected = [token_at(f"g{i}", guest.prompt + p) for p in range(guest.max_tokens)]
        tokens = watch.tokens.get(f"g{i}", [])
        assert watch.reasons[f"g{i}"] in ("length", "abort")
        assert tokens == (expected if watch.reasons[f"g{i}"] == "length" else expected[: len(tokens)])


@pytest.mark.parametrize("policy", [Plain(), Drafting(WIDEST, second=True), Refining(WIDEST, 3)])
@pytest.mark.parametrize("page_size", [1, 4])
@pytest.mark.parametrize("budget", [22, 100])
def test_a_crowd_that_is_known_to_be_short_of_pages(policy: FakePolicy, page_size: int, budget: int) -> None:
    """The same where trouble is certain: the property above could hold for want of it."""
    scheduler = make_scheduler(page_size=page_size, kv_cache_tokens=96, max_batch_tokens=budget, max_running=6)
    arrivals, watch, steps = Arrivals(), Watch(scheduler), 0
    while steps < 20 or scheduler.has_work:
        if steps % 2 == 0 and steps < 20:
            scheduler.add(arrivals.make(f"g{steps}", 4 + steps, policy, 40))
        watch.step()
        steps += 1
    assert watch.victims > 3
    assert watch.longest_unserved > 0 or budget > 22 or policy.mode == "plain"
    for i in range(0, 20, 2):
        assert watch.tokens[f"g{i}"] == [token_at(f"g{i}", 4 + i + p) for p in range(40)]
