"""The span of one request, and the times of its parts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

Value = str | bool | int | float | Sequence[str]
Attributes = Mapping[str, Value]

FIRST_SERVER_ERROR = 500
NANOSECONDS = 1_000_000_000


class RequestSpan:
    """The span of one HTTP request. Moments are given on time.monotonic's clock."""

    def __init__(self, api: Any, tracer: Any, parent: Any, name: str) -> None:
        """api: the module `opentelemetry.trace`. tracer: makes spans. parent: the context that the request brought."""
        self._api, self._tracer = api, tracer
        self._wall, self._clock = time.time_ns(), time.monotonic()
        self._span = tracer.start_span(name, parent, api.SpanKind.SERVER, start_time=self._wall)
        self._error: str | None = None
        ids = self._span.get_span_context()
        self.trace_id = f"{ids.trace_id:032x}"
        """32 hexadecimal digits; those of the caller's `traceparent`, if it sent one."""
        self.span_id = f"{ids.span_id:016x}"
        """16 hexadecimal digits."""

    @property
    def recording(self) -> bool:
        """What is said of the request goes anywhere. Not so where the sampler, or the caller, left it out."""
        return bool(self._span.is_recording())

    def rename(self, name: str) -> None:
        """Gives the request a better name."""
        self._span.update_name(name)

    def set(self, attributes: Attributes) -> None:
        """Adds facts."""
        self._span.set_attributes(attributes)

    def event(self, name: str, moment: float) -> None:
        """Adds something that happened at a moment."""
        self._span.add_event(name, timestamp=self._nanoseconds(moment))

    def child(self, name: str, start: float, end: float, attributes: Attributes) -> None:
        """Adds a part of the request that is over."""
        context = self._api.set_span_in_context(self._span)
        part = self._tracer.start_span(name, context, attributes=attributes, start_time=self._nanoseconds(start))
        part.end(self._nanoseconds(max(start, end)))

    def fail(self, kind: str, *, by_server: bool) -> None:
        """The request ended in an error, of which the first to be told counts. by_server: its client did right."""
        if self._error is not None:
            return
        self._error = kind
        self.set({"error.type": kind})
        if by_server:
            self._span.set_status(self._api.StatusCode.ERROR, kind)

    def end(self, status: int) -> None:
        """The answer is complete, or its client has gone. status: of HTTP, as it was sent."""
        self.set({"http.response.status_code": status})
        if status >= FIRST_SERVER_ERROR:
            self.fail(str(status), by_server=True)
        self._span.end()

    def _nanoseconds(self, moment: float) -> int:
        """A moment as nanoseconds since the epoch."""
        return self._wall + int((moment - self._clock) * NANOSECONDS)
