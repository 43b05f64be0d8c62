"""The record of each generation request: its metrics, and one line in the log. Its text stays out unless asked for."""

from __future__ import annotations

import logging
import time

from server.generation.generation import Generation
from server.generation.request_trace import trace_generation
from server.http.errors import CLIENT_CLOSED_REQUEST, ApiError
from server.operation.metrics import Metrics
from server.text.tokenizer import Tokenizer
from server.tracing.span import RequestSpan

logger = logging.getLogger("lightcone.request")


class RequestLog:
    """Follows one request and records it once, when it ends."""

    def __init__(
        self,
        generation: Generation,
        metrics: Metrics,
        request_id: str,
        text_by: Tokenizer | None = None,
        span: RequestSpan | None = None,
    ) -> None:
        """text_by: decodes the prompts, where texts are logged too. span: of the request, where it is traced."""
        self._generation, self._metrics, self._request_id = generation, metrics, request_id
        self._text_by, self._span = text_by, span
        self._last_chunk: float | None = None
        self._ended = False

    def chunk(self) -> None:
        """Records that a chunk of a stream is about to be sent."""
        now = time.monotonic()
        if self._last_chunk is not None:
            self._metrics.inter_chunk.observe(now - self._last_chunk)
        self._last_chunk = now

    def end(self, status: int, failure: Exception | None) -> None:
        """Records the end of the request; further calls do nothing. Status 499: the client went away."""
        if self._ended:
            return
        self._ended = True
        generation, job = self._generation, self._generation.job
        now = time.monotonic()
        total = now - generation.started
        reasons = {choice.finish_reason for choice in generation.choices if choice.finish_reason is not None}
        gone = status == CLIENT_CLOSED_REQUEST
        reason = ("abort" if gone else "error") if failure is not None else "/".join(sorted(reasons))
        completion = sum(choice.stats.completion_tokens for choice in generation.choices)
        first_text, first_draft = self._since_start(generation.first_text), self._since_start(generation.first_draft)
        for choice, state in zip(job.choices, generation.choices, strict=True):
            self._metrics.record_choice(state.stats, choice.prompt_tokens)
        self._metrics.record_request(job.endpoint, status, reason, job.decoding)
        self._metrics.record_times(total, first_text, first_draft, completion)
        fields = {
            "request_id": self._request_id,
            "id": job.id,
            "endpoint": job.endpoint,
            "model": job.model,
            "decoding": job.decoding,
            "stream": job.stream is not None,
            "choices": len(job.choices),
            "prompt_tokens": sum(choice.prompt_tokens for choice in job.choices),
            "completion_tokens": completion,
            "passes": sum(choice.stats.passes for choice in generation.choices),
            "queue_seconds": round(max(choice.stats.queue_seconds for choice in generation.choices), 6),
            "first_text_seconds": None if first_text is None else round(first_text, 6),
            "total_seconds": round(total, 6),
            "finish_reason": reason,
            "status": status,
            "error": failure.code if isinstance(failure, ApiError) else None,
        }
        if self._span is not None:
            trace_generation(self._span, generation, reason, failure, now)
            fields |= {"trace_id": self._span.trace_id, "span_id": self._span.span_id}
        logger.info("request", extra={"fields": fields | self._texts()})

    def _texts(self) -> dict[str, list[str]]:
        if self._text_by is None:
            return {}
        job = self._generation.job
        first = [job.requests[index].prompt_token_ids for index in job.first_choices]
        prompts = [self._text_by.decode(ids, skip_special_tokens=False) for ids in first]
        return {"prompts": prompts, "texts": [choice.text for choice in self._generation.choices]}

    def _since_start(self, moment: float | None) -> float | None:
        return None if moment is None else moment - self._generation.started
