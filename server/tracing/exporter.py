"""An exporter of spans that tells the operator of a collector that takes nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

logger = logging.getLogger("lightcone.tracing")

REPEAT_SECONDS = 60.0
"""Between two lines about a collector that takes nothing."""


class ReportingExporter:
    """Hands spans to another exporter; logs when they begin to be lost, while they are, and when they no longer are.

    Runs in the thread of the SDK's batches. Its methods are those of the SDK's exporters.
    """

    def __init__(self, exporter: Any, url: str) -> None:
        """exporter: sends to the URL and returns the SDK's result. It tries again by itself for some seconds."""
        self._exporter, self._url = exporter, url
        self._lost, self._next_line = 0, 0.0

    def export(self, spans: Sequence[Any]) -> Any:
        """Sends spans. Returns whether that worked, as the SDK says it."""
        result = self._exporter.export(spans)
        if result.name == "SUCCESS":
            if self._lost:
                logger.info("traces reach %s again; %d spans were lost", self._url, self._lost)
                self._lost, self._next_line = 0, 0.0
            return result
        self._lost += len(spans)
        if time.monotonic() >= self._next_line:
            logger.warning("traces do not reach %s: %d spans lost so far", self._url, self._lost)
            self._next_line = time.monotonic() + REPEAT_SECONDS
        return result

    def shutdown(self) -> None:
        """Sends nothing any more."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is held back here."""
        return bool(self._exporter.force_flush(timeout_millis))
