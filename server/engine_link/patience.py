"""Timeouts on another process that count only the time in which this one ran."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

SLICE_SECONDS = 0.5
LAST_LOOK_SECONDS = 0.05
"""Time for what has already arrived to be read before the verdict."""

_T = TypeVar("_T")


async def wait_running(work: Coroutine[Any, Any, _T], seconds: float) -> _T:
    """The result of the work. Raises TimeoutError, the work being cancelled, after so many seconds without one.

    A process that was stopped (a frozen container, a paused virtual machine, a debugger) finds on waking that a clock
    has gone on. So time is counted in slices, and one that took longer than it should counts as a slice.
    """
    task, left = asyncio.ensure_future(work), seconds
    try:
        while left > 0:
            slice_seconds = min(left, SLICE_SECONDS)
            await asyncio.wait({task}, timeout=slice_seconds)
            if task.done():
                return task.result()
            left -= slice_seconds
        await asyncio.wait({task}, timeout=LAST_LOOK_SECONDS)
        if task.done():
            return task.result()
        raise TimeoutError
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
