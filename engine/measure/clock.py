"""The clock that durations of passes are taken with."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch


class Clock(NamedTuple):
    """A clock for durations."""

    name: str
    now: Callable[[], float]
    """The time in seconds."""


def clock_for(device: torch.device) -> Clock:
    """CPU time of this thread where that is all there is to a pass (a CPU, one torch thread), else the wall clock.

    On a machine that others use too, a pass that was interrupted does not look slow then.
    """
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return Clock("thread CPU time", time.thread_time)
    return Clock("wall clock", time.perf_counter)
