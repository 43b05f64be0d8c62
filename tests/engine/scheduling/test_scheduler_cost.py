"""What a step of the scheduler costs, counted in bytecode instructions: no noisy neighbour can change those."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from engine.scheduling.scheduler import Scheduler
from tests.engine.scheduling.fakes import Arrivals, FakePolicy, Plain, Refining, make_scheduler, outcomes_of, run_step


@pytest.fixture
def arrivals() -> Arrivals:
    return Arrivals()


def opcodes(action: Callable[[], object]) -> int:
    """Bytecode instructions an action takes: work that no noisy neighbour can change."""
    count = 0

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    previous = sys.gettrace()
    gc.disable()  # a collection calls what others have put into gc.callbacks
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(previous)
        gc.enable()
    return count


def step_costs(scheduler: Scheduler, steps: int) -> list[int]:
    def one() -> None:
        plan = scheduler.schedule()
        scheduler.apply(plan, outcomes_of(plan))

    return [opcodes(one) for _ in range(steps)]


def costs_among(arrivals: Arrivals, policy: FakePolicy, *, prompt: int = 8, queue: int = 0) -> list[int]:
    """Costs of 12 steps of a request with a prompt of `prompt` tokens, while `queue` others wait for its pages."""
    scheduler = make_scheduler(kv_cache_tokens=prompt + 68, max_batch_tokens=10_000)
    scheduler.add(arrivals.make(f"runner{prompt}-{queue}", prompt, policy, 64))
    for i in range(queue):
        scheduler.add(arrivals.make(f"waiter{i}", 80, Plain(), 2))
    for _ in range(4):
        run_step(scheduler)
    return step_costs(scheduler, 12)


@pytest.mark.parametrize("policy", [Plain(), Refining(8, 3)])
def test_a_step_costs_the_same_however_many_wait(policy: FakePolicy, arrivals: Arrivals) -> None:
    """A burst of requests would slow down every stream there is."""
    few, many = costs_among(arrivals, policy, queue=2), costs_among(arrivals, policy, queue=500)
    assert few == many


@pytest.mark.parametrize("policy", [Plain(), Refining(8, 3)])
def test_a_step_costs_the_same_however_long_the_context(policy: FakePolicy, arrivals: Arrivals) -> None:
    """A long conversation would get slower with every token, beyond what attention itself costs."""
    short, long = costs_among(arrivals, policy, prompt=8), costs_among(arrivals, policy, prompt=4008)
    assert short == long


def test_a_step_costs_the_same_however_much_of_a_waiting_prompt_is_cached(arrivals: Arrivals) -> None:
    """A long prompt that waits for pages would be looked up in the prefix cache again before every pass."""
    costs = []
    for length in (40, 4000):
        scheduler = make_scheduler(kv_cache_tokens=length + 168, max_batch_tokens=10_000)
        runner = arrivals.make(f"runner{length}", length, Plain(), 64)
        scheduler.add(runner)
        run_step(scheduler)
        scheduler.add(arrivals.make("waiter", [*runner.request.prompt_token_ids, *range(180)], Plain(), 2))
        run_step(scheduler)
        costs.append(step_costs(scheduler, 12))
        assert scheduler.num_waiting == 1
    assert costs[0] == costs[1]


def test_a_step_costs_no_more_than_in_proportion_to_its_sequences(arrivals: Arrivals) -> None:
    """Concurrency would cost more than it brings."""
    costs = {}
    for count in (4, 64):
        scheduler = make_scheduler(kv_cache_tokens=64 * 64, max_running=64, max_batch_tokens=1000)
        for i in range(count):
            scheduler.add(arrivals.make(f"{count}-{i}", 8, Plain(), 40))
        run_step(scheduler)
        costs[count] = sum(step_costs(scheduler, 4))
    assert costs[64] < 16 * costs[4]
