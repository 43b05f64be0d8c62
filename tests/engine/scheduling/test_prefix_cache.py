"""Shared prefixes and unverified pages. If one fails, prompts are computed again, or NaN spreads from a page to another
request."""

from __future__ import annotations

import pytest

from engine.decoding.results import StepOutcome
from engine.scheduling.scheduler import Scheduler
from engine.sequence import Sequence
from tests.engine.scheduling.fakes import (
    Arrivals,
    Drafting,
    Plain,
    make_scheduler,
    outcomes_of,
    run_step,
    run_until_idle,
    spans_of,
)

PROMPT = list(range(100, 140))


@pytest.fixture
def arrivals() -> Arrivals:
    return Arrivals()


@pytest.mark.parametrize(("length", "hit"), [(7, 4), (8, 4), (9, 8), (16, 12), (17, 16), (40, 36)])
def test_a_repeated_prompt_is_reused_up_to_the_token_before_its_last(length: int, hit: int, arrivals: Arrivals) -> None:
    """The same prompt would be computed again, or its last token's logit be missing, or a shared page be written."""
    scheduler = make_scheduler(kv_cache_tokens=256)
    for name in ("first", "second"):
        scheduler.add(arrivals.make(name, PROMPT[:length], Plain(), 2))
        plan, _, _ = run_step(scheduler)
        run_until_idle(scheduler)
    assert spans_of(plan) == [("second", "prefill", length - hit)]


def cached_tokens(scheduler: Scheduler, seq: Sequence) -> int:
    scheduler.add(seq)
    run_until_idle(scheduler)
    return seq.stats.cached_tokens


def test_prefix_hits_are_counted_by_whole_pages_and_only_for_equal_salts(arrivals: Arrivals) -> None:
    """usage.prompt_tokens_details would be wrong, or one tenant could tell what another one asked."""
    scheduler = make_scheduler(kv_cache_tokens=256)
    assert cached_tokens(scheduler, arrivals.make("a", PROMPT[:20], Plain(), 2)) == 0
    assert cached_tokens(scheduler, arrivals.make("b", [*PROMPT[:14], 7, 7, 7, 7], Plain(), 2)) == 12
    assert cached_tokens(scheduler, arrivals.make("c", PROMPT[:20], Plain(), 2, cache_salt="tenant")) == 0
    assert cached_tokens(scheduler, arrivals.make("d", PROMPT[:20], Plain(), 2, cache_salt="tenant")) == 16
    assert cached_tokens(scheduler, arrivals.make("e", [7, *PROMPT[1:20]], Plain(), 2)) == 0


def test_an_answer_becomes_part_of_the_cached_prefix(arrivals: Arrivals) -> None:
    """A chat's next turn would compute the last answer again."""
    scheduler = make_scheduler(kv_cache_tokens=256)
    first = arrivals.make("a", PROMPT[:10], Drafting(6), 20)
    scheduler.add(first)
    run_until_idle(scheduler)
    assert cached_tokens(scheduler, arrivals.make("b", [*first.token_ids, 7], Plain(), 2)) >= 20


def test_without_prefix_caching_nothing_is_kept(arrivals: Arrivals) -> None:
    """`prefix_caching = false` would be ignored."""
    scheduler = make_scheduler(kv_cache_tokens=256, prefix_caching=False)
    assert [cached_tokens(scheduler, arrivals.make(name, PROMPT, Plain(), 2)) for name in "ab"] == [0, 0]
    assert scheduler.allocator.num_cached == 0


# --- unverified pages -------------------------------------------------------------------------------------------------


@pytest.fixture
def cleared() -> list[int]:
    """Pages that the scheduler of a test has zeroed."""
    return []


def half_prefilled(scheduler: Scheduler, arrivals: Arrivals) -> Sequence:
    """A sequence with a first chunk of its prompt encoded, from which no logit has been computed."""
    seq = arrivals.make("half", 20, Plain(), 2)
    scheduler.add(seq)
    run_step(scheduler)
    assert (seq.num_cached, seq.unverified) == (10, True)
    return seq


def test_pages_without_a_logit_yet_are_cleared_when_their_request_is_aborted(
    arrivals: Arrivals, cleared: list[int]
) -> None:
    scheduler = make_scheduler(cleared, max_batch_tokens=10)
    pages = list(half_prefilled(scheduler, arrivals).pages)
    scheduler.abort("half")
    assert cleared == pages


def test_pages_without_a_logit_yet_are_cleared_when_their_request_is_preempted(
    arrivals: Arrivals, cleared: list[int]
) -> None:
    scheduler = make_scheduler(cleared, max_batch_tokens=10)
    seq = half_prefilled(scheduler, arrivals)
    pages = list(seq.pages)
    scheduler._preempt(seq)
    assert cleared == pages
    run_until_idle(scheduler)
    assert cleared == pages, "verified pages were cleared"


@pytest.mark.parametrize("failure", [{"finite": False}, {"error": "it failed"}])
def test_pages_of_a_failed_step_are_cleared_but_for_those_shared_before(
    arrivals: Arrivals, cleared: list[int], failure: dict[str, object]
) -> None:
    scheduler = make_scheduler(cleared, kv_cache_tokens=256)
    seq = arrivals.make("a", PROMPT[:10], Plain(), 5)
    scheduler.add(seq)
    run_step(scheduler)
    plan = scheduler.schedule()
    private = seq.pages[2:]
    [span] = plan.spans
    scheduler.apply(plan, [StepOutcome(span, **failure)])  # type: ignore[arg-type]
    assert cleared == private
    assert cached_tokens(scheduler, arrivals.make("b", PROMPT[:10], Plain(), 2)) == 8


def test_nothing_is_shared_before_a_finite_logit(arrivals: Arrivals) -> None:
    """A second request with the same prompt would read NaN out of the cache."""
    scheduler = make_scheduler(kv_cache_tokens=256, max_batch_tokens=10)
    scheduler.add(arrivals.make("a", PROMPT, Plain(), 2))
    plan = scheduler.schedule()
    scheduler.apply(plan, outcomes_of(plan))
    assert scheduler.allocator.num_cached == 0
    scheduler.abort("a")
    assert scheduler.allocator.num_cached == 0
