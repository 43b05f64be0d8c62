"""Tracing by OpenTelemetry: spans of requests, sent to a collector in the background. The SDK is an extra."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

from engine.errors import ConfigError
from server.tracing.exporter import ReportingExporter
from server.tracing.span import RequestSpan
from server.version import VERSION

logger = logging.getLogger("lightcone.tracing")

SERVICE_NAME = "lightcone"
TRACES_PATH = "/v1/traces"
"""Where a collector takes traces, if the URL names no path."""
FLUSH_SECONDS = 2.0
"""Longest time that the end of the server waits for the last spans to be sent."""
POLL_SECONDS = 0.01


def traces_url(endpoint: str) -> str:
    """The URL that spans are sent to. Raises ValueError, which says what is wrong."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("not the URL of a collector, such as http://localhost:4318")
    if parts.port == 0:  # reading it also raises ValueError for one that is no number
        raise ValueError("port 0 is nobody's")
    return urlunsplit(parts._replace(path=TRACES_PATH)) if parts.path in ("", "/") else endpoint


class Tracer:
    """Makes the spans of requests. Making one never waits: a thread sends them, and drops what it cannot hold."""

    def __init__(self, provider: Any, api: Any, propagator: Any) -> None:
        """See `open`."""
        self._provider, self._api, self._propagator = provider, api, propagator
        self._tracer = provider.get_tracer(SERVICE_NAME, VERSION)

    @classmethod
    def open(cls, endpoint: str) -> Self:
        """Begins to trace. Raises ConfigError where the SDK is not installed.

        endpoint: see `traces_url`. Headers, sampling, limits and resource attributes are set by OpenTelemetry's own
        variables (OTEL_EXPORTER_OTLP_HEADERS, OTEL_TRACES_SAMPLER, OTEL_BSP_*, OTEL_RESOURCE_ATTRIBUTES).
        """
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as exc:
            raise ConfigError(
                f"otlp_traces_endpoint needs the tracing extra (pip install 'lightcone[tracing]'): {exc}"
            ) from None
        url = traces_url(endpoint)
        own = Resource.create({"service.name": SERVICE_NAME, "service.version": VERSION})
        provider = TracerProvider(resource=own.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(ReportingExporter(OTLPSpanExporter(endpoint=url), url)))
        # Its own lines name neither the collector nor what was lost: `ReportingExporter` tells both.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        return cls(provider, trace, TraceContextTextMapPropagator())

    def begin(self, name: str, headers: Mapping[str, str]) -> RequestSpan:
        """The span of a request that has just arrived, below the one that its `traceparent` names, if there is one."""
        return RequestSpan(self._api, self._tracer, self._propagator.extract(headers), name)

    async def close(self) -> None:
        """Sends what is left, within FLUSH_SECONDS."""
        # A daemon: a collector that does not answer must not keep the process.
        flush = threading.Thread(target=self._provider.shutdown, name="tracing-flush", daemon=True)
        flush.start()
        deadline = time.monotonic() + FLUSH_SECONDS
        while flush.is_alive():  # looked at, not told: the loop may be closed by the time the thread ends
            if time.monotonic() > deadline:
                logger.warning("the last traces could not be sent within %g s", FLUSH_SECONDS)
                return
            await asyncio.sleep(POLL_SECONDS)
