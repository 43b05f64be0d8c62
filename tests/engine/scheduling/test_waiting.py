"""The queue of sequences without pages. If one fails, a request is overtaken, lost or run after it has left."""

from __future__ import annotations

from engine.scheduling.waiting import WaitingQueue
from engine.sequence import Status
from tests.engine.scheduling.fakes import Arrivals, Plain


def test_first_come_first_served_within_a_priority_and_without_those_that_left() -> None:
    queue, arrivals = WaitingQueue(), Arrivals()
    seqs = {name: arrivals.make(name, 3, Plain(), 2, priority=priority) for name, priority in
            (("late", 1), ("first", 0), ("second", 0), ("leaver", -2), ("urgent", -1))}  # fmt: skip
    for seq in seqs.values():
        queue.push(seq)
    seqs["leaver"].status = Status.FINISHED
    queue.forget()
    served = []
    for left in (3, 2, 1, 0):
        first = queue.first()
        assert first is not None
        served.append(first.request.request_id)
        queue.pop()
        assert len(queue) == left
    assert served == ["urgent", "first", "second", "late"]
    assert queue.first() is None
