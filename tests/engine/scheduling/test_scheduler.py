"""What the scheduler promises, one scene at a time. test_scheduler_properties.py holds what is true of every scene,
test_scheduler_cost.py what a step costs.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine.batch import Phase
from engine.events import Finished
from engine.request import DecodingParams
from engine.scheduling.scheduler import Scheduler
from engine.sequence import Sequence
from tests.engine.scheduling.fakes import (
    Arrivals,
    Drafting,
    Plain,
    Refining,
    Window,
    make_scheduler,
    outcomes_of,
    run_step,
    run_until_idle,
    spans_of,
)


@pytest.fixture
def arrivals() -> Arrivals:
    return Arrivals()


# --- admission and preemption -----------------------------------------------------------------------------------------


def test_requests_are_admitted_by_priority_then_arrival(arrivals: Arrivals) -> None:
    """An urgent request would wait behind a batch job, or a patient one be overtaken for ever."""
    scheduler = make_scheduler(max_running=1)
    for name, priority in (("late", 1), ("first", 0), ("second", 0), ("urgent", -1)):
        scheduler.add(arrivals.make(name, 3, Plain(), 2, priority=priority))
    assert [event.request_id for event in run_until_idle(scheduler)] == ["urgent", "first", "second", "late"]


def test_the_youngest_of_the_lowest_priority_gives_way(arrivals: Arrivals) -> None:
    """The request that has waited longest, or matters most, would be thrown back."""
    scheduler = make_scheduler(kv_cache_tokens=64, prefix_caching=False)
    old = arrivals.make("old", 8, Plain(), 40)
    unimportant = arrivals.make("unimportant", 8, Plain(), 40, priority=1)
    young = arrivals.make("young", 8, Plain(), 40)
    for seq in (old, unimportant, young):
        scheduler.add(seq)
    order: list[str] = []
    while scheduler.has_work:
        before = {seq: seq.stats.preemptions for seq in (old, unimportant, young)}
        _, _, stats = run_step(scheduler)
        hit = [seq.request.request_id for seq, count in before.items() if seq.stats.preemptions > count]
        assert stats.preemptions == len(hit)
        order += hit
    assert order[:2] == ["unimportant", "young"]
    assert old.stats.preemptions == 0
    assert all(seq.num_generated == 40 for seq in (old, unimportant, young))


def test_a_preempted_request_counts_its_cached_prompt_and_its_queueing_once(arrivals: Arrivals) -> None:
    """usage.cached_tokens would claim a request's own work, done before it was preempted, as a cache hit."""
    scheduler = make_scheduler(kv_cache_tokens=64)
    seqs = [arrivals.make(name, 8, Plain(), 40) for name in ("old", "young")]
    for seq in seqs:
        scheduler.add(seq)
    run_until_idle(scheduler)
    assert seqs[1].stats.preemptions > 0
    assert seqs[1].stats.cached_tokens == 0


def test_a_policy_that_needs_nothing_cached_starts_at_once_with_the_pages_it_wants(arrivals: Arrivals) -> None:
    """It would be admitted without a page, however many wait, and thrown back at its first span."""
    scheduler = make_scheduler(kv_cache_tokens=64)
    first, second = (arrivals.make(name, 8, Window(), 32) for name in "ab")
    scheduler.add(first)
    scheduler.add(second)
    plan = scheduler.schedule()
    assert spans_of(plan) == [("a", "denoise", 40)]
    assert (len(first.pages), first.num_cached, second.row) == (10, 0, -1)
    scheduler.apply(plan, outcomes_of(plan))
    assert len(run_until_idle(scheduler)) == 1
    assert second.stats.preemptions == 0


# --- leaving ----------------------------------------------------------------------------------------------------------


def preempted(scheduler: Scheduler, arrivals: Arrivals) -> Sequence:
    older, seq = arrivals.make("older", 8, Plain(), 50), arrivals.make("leaver", 8, Plain(), 50)
    scheduler.add(older)
    scheduler.add(seq)
    while seq.stats.preemptions == 0:
        run_step(scheduler)
    assert seq.row < 0
    return seq


def waiting(scheduler: Scheduler, arrivals: Arrivals) -> Sequence:
    for i in range(scheduler.config.max_running):
        scheduler.add(arrivals.make(f"other{i}", 2, Plain(), 3))
    seq = arrivals.make("leaver", 8, Plain(), 3)
    scheduler.add(seq)
    run_step(scheduler)
    assert seq.row < 0
    return seq


def prefilling(scheduler: Scheduler, arrivals: Arrivals) -> Sequence:
    seq = arrivals.make("leaver", 50, Plain(), 3)
    scheduler.add(seq)
    run_step(scheduler)
    assert 0 < seq.num_cached < 50
    return seq


def refining(scheduler: Scheduler, arrivals: Arrivals) -> Sequence:
    seq = arrivals.make("leaver", 8, Refining(6, 4), 20)
    scheduler.add(seq)
    for _ in range(3):
        run_step(scheduler)
    assert seq.block is not None
    return seq


@pytest.mark.parametrize("reach", [waiting, prefilling, refining, preempted])
def test_an_abort_frees_all_a_request_holds(
    reach: Callable[[Scheduler, Arrivals], Sequence], arrivals: Arrivals
) -> None:
    """Each client that hangs up would take some of the server's memory with it."""
    scheduler = make_scheduler(max_batch_tokens=20, max_running=4)
    seq = reach(scheduler, arrivals)
    events = scheduler.abort("leaver")
    assert [(event.request_id, event.reason) for event in events if isinstance(event, Finished)] == [
        ("leaver", "abort")
    ]
    scheduler.check_integrity()
    assert (seq.pages, seq.row) == ([], -1)
    assert scheduler.abort("leaver") == []
    run_until_idle(scheduler)
    assert sorted(scheduler._free_rows) == list(range(4))


@pytest.mark.parametrize("reach", [waiting, prefilling, refining, preempted])
def test_an_id_can_be_used_again_after_an_abort(
    reach: Callable[[Scheduler, Arrivals], Sequence], arrivals: Arrivals
) -> None:
    """The aborted request would come back to life and answer in place of the new one."""
    scheduler = make_scheduler(max_batch_tokens=20, max_running=4)
    old = reach(scheduler, arrivals)
    scheduler.abort("leaver")
    new = arrivals.make("leaver", 5, Plain(), 3)
    scheduler.add(new)
    generated = old.num_generated
    run_until_idle(scheduler)
    assert old.num_generated == generated, "the aborted request was run"
    assert new.num_generated == 3
    assert scheduler.num_waiting == 0


def test_an_id_in_use_is_refused(arrivals: Arrivals) -> None:
    """Two clients would read one answer."""
    scheduler = make_scheduler()
    scheduler.add(arrivals.make("a", 5, Plain(), 3))
    with pytest.raises(KeyError, match="in use"):
        scheduler.add(arrivals.make("a", 5, Plain(), 3))
    assert len(run_until_idle(scheduler)) == 1


# --- prefill ------------------------------------------------------------------------------------------------------


def test_a_long_prompt_is_run_in_chunks_beside_decoding(arrivals: Arrivals) -> None:
    """One long prompt would stop everybody's stream, or never get its turn."""
    scheduler = make_scheduler(kv_cache_tokens=256, max_batch_tokens=16)
    scheduler.add(arrivals.make("talker", 4, Drafting(6), 30))
    run_step(scheduler)
    scheduler.add(arrivals.make("reader", 35, Plain(), 2))
    chunks = []
    for _ in range(4):
        spans = spans_of(run_step(scheduler)[0])
        assert ("talker", "verify", 6) in spans
        chunks += [tokens for name, phase, tokens in spans if phase == "prefill"]
    assert chunks == [10, 10, 10, 5]


def test_prompts_keep_their_share_while_decoding_could_use_it_all(arrivals: Arrivals) -> None:
    """A busy server would never begin to answer."""
    scheduler = make_scheduler(kv_cache_tokens=512, max_batch_tokens=16)
    for i in range(4):
        scheduler.add(arrivals.make(f"talker{i}", 2, Drafting(4, accepts=0), 30))
    run_step(scheduler)
    scheduler.add(arrivals.make("reader", 20, Plain(), 2))
    served = []
    for _ in range(4):
        spans = spans_of(run_step(scheduler)[0])
        assert spans[0] == ("reader", "prefill", 4)
        served += [name for name, phase, _ in spans if phase == "verify"]
    assert sorted(served) == sorted(3 * [f"talker{i}" for i in range(4)])


def test_only_the_last_chunk_asks_for_a_logit(arrivals: Arrivals) -> None:
    """Each chunk of a prompt would pay for a row of the output head, or the first token be chosen too early."""
    scheduler = make_scheduler(max_batch_tokens=10)
    scheduler.add(arrivals.make("a", 25, Plain(), 2))
    logits = []
    for _ in range(3):
        plan, events, _ = run_step(scheduler)
        logits += [span.num_logits for span in plan.spans]
        assert bool(events) == bool(logits[-1])
    assert logits == [0, 0, 1]


# --- pages of drafts --------------------------------------------------------------------------------------------------


def test_pages_a_rejection_put_out_of_reach_are_given_back(arrivals: Arrivals) -> None:
    """Rejected drafts would hold pages that other requests wait for."""
    scheduler = make_scheduler(kv_cache_tokens=256)
    policy = Drafting(16, second=True, accepts=0)
    seq = arrivals.make("a", 8, policy, 60, decoding=DecodingParams(block_length=4))
    scheduler.add(seq)
    run_step(scheduler)
    plan, _, _ = run_step(scheduler)
    assert max(span.kv_end for span in plan.spans) == 8 + 32
    assert seq.num_cached == 9
    assert len(seq.pages) == 4  # the next block of 4 reaches position 13
    run_until_idle(scheduler)


def test_an_optional_draft_is_dropped_when_the_budget_is_short(arrivals: Arrivals) -> None:
    """A draft nobody needs would hold up a request that has nothing else to do in this pass."""
    scheduler = make_scheduler(kv_cache_tokens=256, max_batch_tokens=20)
    for name in "ab":
        scheduler.add(arrivals.make(name, 4, Drafting(6, second=True), 30))
    run_step(scheduler)
    assert spans_of(run_step(scheduler)[0]) == [("a", "verify", 6), ("b", "verify", 6), ("a", "draft", 6)]


def test_an_optional_draft_is_dropped_before_anybody_is_preempted(arrivals: Arrivals) -> None:
    """A running request would be thrown back for the sake of a draft nobody needs."""
    scheduler = make_scheduler(kv_cache_tokens=20, prefix_caching=False)
    first, second = (arrivals.make(name, 4, Drafting(4, second=True, accepts=0), 8) for name in "ab")
    scheduler.add(first)
    scheduler.add(second)
    run_step(scheduler)
    plan, _, stats = run_step(scheduler)
    assert [(name, phase) for name, phase, _ in spans_of(plan)] == [("a", "verify"), ("b", "verify"), ("a", "draft")]
    assert stats.preemptions == 0
    run_until_idle(scheduler)


def test_phases_are_named_in_the_order_a_shared_pass_needs(arrivals: Arrivals) -> None:
    """A draft would be placed in a block before the verification that decides whether the block stands."""
    scheduler = make_scheduler(kv_cache_tokens=512, max_batch_tokens=200)
    scheduler.add(arrivals.make("refiner", 4, Refining(4, 2), 30))
    scheduler.add(arrivals.make("drafter", 4, Drafting(4, second=True), 30))
    scheduler.add(arrivals.make("plain", 4, Plain(), 30))
    run_step(scheduler)
    scheduler.add(arrivals.make("new", 4, Plain(), 30))
    plan, _, stats = run_step(scheduler)
    assert [group.phase for group in plan.groups] == [
        Phase.PREFILL, Phase.DECODE, Phase.VERIFY, Phase.DENOISE, Phase.DRAFT,
    ]  # fmt: skip
    assert (stats.sequences, stats.shared, sum(stats.phases.values())) == (4, 1, 5)
