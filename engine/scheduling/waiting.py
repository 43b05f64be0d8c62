"""WaitingQueue: the sequences that hold no pages, by priority and then by arrival."""

from __future__ import annotations

import heapq

from engine.sequence import Sequence, Status


class WaitingQueue:
    """A heap from which sequences may also leave unasked: a finished one is skipped when it comes to the top."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int], Sequence]] = []
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, seq: Sequence) -> None:
        """Adds a sequence in O(log n)."""
        heapq.heappush(self._heap, (seq.order, seq))
        self._length += 1

    def first(self) -> Sequence | None:
        """The next sequence to be admitted; None if nobody waits."""
        while self._heap:
            seq = self._heap[0][1]
            if seq.status is not Status.FINISHED:
                return seq
            heapq.heappop(self._heap)
        return None

    def pop(self) -> None:
        """Removes the sequence that `first` returned."""
        heapq.heappop(self._heap)
        self._length -= 1

    def forget(self) -> None:
        """One of the sequences, which will not come back, is finished now."""
        self._length -= 1
