"""A small collector: takes traces over OTLP/HTTP as the real one does, and keeps their spans."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Span:
    """A span as it arrived."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    start: int
    end: int
    status: int
    attributes: dict[str, Any]
    events: dict[str, int]
    resource: dict[str, Any]


@dataclass
class Collector:
    """What has arrived so far."""

    url: str
    spans: list[Span] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)
    headers: list[dict[str, str]] = field(default_factory=list)

    @property
    def requests(self) -> list[Span]:
        """The spans of HTTP requests, in the order of their beginnings."""
        return sorted((span for span in self.spans if span.kind == 2), key=lambda span: span.start)

    def parts(self, request: Span) -> list[Span]:
        """The spans below a request's, in the order of their beginnings."""
        return sorted((span for span in self.spans if span.parent_id == request.span_id), key=lambda span: span.start)


def value_of(value: Any) -> Any:
    """An attribute's value as Python has it."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [value_of(item) for item in value.array_value.values]
    return getattr(value, kind)


def spans_of(body: bytes) -> list[Span]:
    """The spans of one export."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    found = []
    for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = {item.key: value_of(item.value) for item in of_resource.resource.attributes}
        for scope in of_resource.scope_spans:
            found += [
                Span(
                    span.name, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(), span.kind,
                    span.start_time_unix_nano, span.end_time_unix_nano, span.status.code,
                    {item.key: value_of(item.value) for item in span.attributes},
                    {event.name: event.time_unix_nano for event in span.events}, resource,
                )
                for span in scope.spans
            ]  # fmt: skip
    return found


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a port of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.paths.add(self.path)
            collector.headers.append({name.lower(): value for name, value in self.headers.items()})
            collector.spans += spans_of(body)
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        collector = Collector(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
