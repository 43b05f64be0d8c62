"""If these fail, the load that is sent is not the load that was asked for."""

import asyncio
import os
import signal
from collections.abc import Callable
from itertools import count

import pytest

from loadtest.http_client import Client, Target
from loadtest.records import Record
from loadtest.runner import Load, Outcome, interruptible, run_load
from loadtest.workload import Prompt, poisson_arrivals
from tests.loadtest.fake import Body, FakeServer, Reply


def drive(fake: FakeServer, load: Load, on_record: Callable[[Record], None] | None = None) -> Outcome:
    async def go() -> Outcome:
        prompts = (Prompt(text=str(number)) for number in count())
        async with Client(Target(base_url=fake.url), load.concurrency) as client:
            with interruptible() as stop:
                return await run_load(client, prompts, load, stop, on_record)

    return asyncio.run(go())


def asked(fake: FakeServer) -> list[str]:
    return [body["messages"][0]["content"] for body in fake.bodies]


def test_a_closed_loop_keeps_exactly_the_asked_concurrency(fake: FakeServer) -> None:
    fake.reply = lambda body: Reply(delay_s=0.05)
    outcome = drive(fake, Load(concurrency=3, requests=12))
    assert fake.most_in_flight == 3
    assert sorted(asked(fake), key=int) == [str(number) for number in range(12)]
    assert sorted(record.index for record in outcome.records) == list(range(12))
    assert not outcome.interrupted
    assert all(0 <= record.start_s <= outcome.wall_s for record in outcome.records)


def test_records_name_the_prompt_they_belong_to(fake: FakeServer) -> None:
    fake.reply = lambda body: Reply(pieces=(body["messages"][0]["content"],), delay_s=0.01)
    outcome = drive(fake, Load(concurrency=4, requests=20))
    assert {record.index: record.text for record in outcome.records} == {n: str(n) for n in range(20)}
    outcome = drive(fake, Load(concurrency=2, rate=400.0, requests=20))
    assert {record.index: record.text for record in outcome.records} == {n: str(n) for n in range(20)}


def test_warm_up_is_sent_but_not_reported(fake: FakeServer) -> None:
    outcome = drive(fake, Load(concurrency=2, requests=3, warmup=4))
    assert len(fake.bodies) == 7
    assert len(outcome.records) == 3
    assert set(asked(fake)[:4]) == {"0", "1", "2", "3"}


def test_a_duration_stops_new_requests_and_waits_for_the_ones_in_flight(fake: FakeServer) -> None:
    fake.reply = lambda body: Reply(delay_s=0.2)
    outcome = drive(fake, Load(concurrency=2, duration_s=0.3))
    assert len(outcome.records) == len(fake.bodies) >= 2
    assert outcome.abandoned == 0
    assert all(record.start_s < 0.3 and not record.error for record in outcome.records)


def test_an_open_loop_sends_at_the_seeded_times_whatever_the_server_does(fake: FakeServer) -> None:
    fake.reply = lambda body: Reply(delay_s=0.3)
    outcome = drive(fake, Load(concurrency=50, rate=40.0, requests=10, seed=9))
    due = sorted(record.start_s for record in outcome.records)
    arrivals = poisson_arrivals(40.0, seed=9)
    assert due == pytest.approx([next(arrivals) for _ in range(10)])
    assert fake.most_in_flight > 1  # arrivals do not wait for answers


def test_an_open_loop_at_its_limit_waits_and_the_wait_is_latency(fake: FakeServer) -> None:
    fake.reply = lambda body: Reply(delay_s=0.1)
    outcome = drive(fake, Load(concurrency=1, rate=1000.0, requests=4))
    assert fake.most_in_flight == 1
    assert max(record.end_s for record in outcome.records) >= 0.3
    assert max(record.lag_s for record in outcome.records) >= 0.25


def test_one_failure_ends_one_request(fake: FakeServer) -> None:
    def reply(body: Body) -> Reply:
        return Reply(status=500, error="no") if body["messages"][0]["content"] == "3" else Reply()

    fake.reply = reply
    outcome = drive(fake, Load(concurrency=2, requests=8))
    assert [record.index for record in outcome.records if record.error] == [3]
    assert len(outcome.records) == 8


def test_control_c_keeps_what_was_measured(fake: FakeServer) -> None:
    def reply(body: Body) -> Reply:
        if len(fake.bodies) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return Reply(delay_s=0.0 if len(fake.bodies) < 4 else 30.0)

    fake.reply = reply
    outcome = drive(fake, Load(concurrency=2, requests=100))
    assert outcome.interrupted
    assert len(outcome.records) == 3
    assert outcome.abandoned == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_every_record_is_told_as_it_comes(fake: FakeServer) -> None:
    seen: list[int] = []
    drive(fake, Load(concurrency=1, requests=3, warmup=2), lambda record: seen.append(record.index))
    assert seen == [0, 1, 2]


def test_a_load_without_a_bound_is_refused(fake: FakeServer) -> None:
    with pytest.raises(ValueError, match="bound"):
        drive(fake, Load(concurrency=1))
