"""What a trace tells of a generation: its figures on the request's span, and its phases as spans below it."""

from __future__ import annotations

from server.generation.generation import Generation
from server.generation.job import EndpointName, Job
from server.http.errors import ApiError, ClientGone
from server.tracing.span import RequestSpan, Value

PROVIDER = "lightcone"
OPERATIONS: dict[EndpointName, str] = {"chat": "chat", "responses": "chat", "messages": "chat", "edit": "chat"}
"""GenAI's name of the operation, where it is not TEXT_COMPLETION."""
TEXT_COMPLETION = "text_completion"


def trace_generation(
    span: RequestSpan, generation: Generation, reason: str, failure: Exception | None, ended: float
) -> None:
    """Tells the span of a generation that has ended, in OpenTelemetry's conventions for GenAI and in `lightcone.*`.

    No text of a prompt or an answer is among it. ended: on time.monotonic's clock.
    """
    if failure is not None:
        _tell_failure(span, failure)
    if not span.recording:
        return
    job = generation.job
    operation = OPERATIONS.get(job.endpoint, TEXT_COMPLETION)
    span.rename(f"{operation} {job.model}")
    span.set(_request_attributes(job, operation) | _result_attributes(generation, reason))
    for name, moment in (("first_draft", generation.first_draft), ("first_text", generation.first_text)):
        if moment is not None:
            span.event(name, moment)
    _add_phases(span, generation, ended)


def _tell_failure(span: RequestSpan, failure: Exception) -> None:
    if isinstance(failure, ApiError):
        span.fail(failure.code or "unknown", by_server=failure.status >= 500)
    elif isinstance(failure, ClientGone | TimeoutError):  # the latter: a reader that took nothing for too long
        span.fail("client_gone", by_server=False)
    else:
        span.fail("internal_error", by_server=True)


def _request_attributes(job: Job, operation: str) -> dict[str, Value]:
    """What was asked for. The choices differ in their seeds alone."""
    request = job.requests[0]
    sampling = request.sampling
    return {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": job.model,
        "gen_ai.request.stream": job.stream is not None,
        "gen_ai.request.choice.count": len(job.choices),
        "gen_ai.request.max_tokens": request.max_tokens,
        "gen_ai.request.seed": job.seed,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k,
        "gen_ai.request.presence_penalty": sampling.presence_penalty,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
        "gen_ai.response.id": job.id,
        "gen_ai.response.model": job.model,
        "lightcone.endpoint": job.endpoint,
        "lightcone.decoding": job.decoding,
        "lightcone.has_grammar": job.grammar is not None,
    }


def _result_attributes(generation: Generation, reason: str) -> dict[str, Value]:
    """What came of it, over all choices."""
    job, all_stats = generation.job, [choice.stats for choice in generation.choices]
    finished = [choice.finish_reason for choice in generation.choices if choice.finish_reason is not None]
    completion, passes = sum(stats.completion_tokens for stats in all_stats), sum(stats.passes for stats in all_stats)
    first = {"gen_ai.response.time_to_first_chunk": generation.first_text}
    first |= {"lightcone.time_to_first_draft": generation.first_draft}
    return {
        "gen_ai.usage.input_tokens": sum(job.choices[index].prompt_tokens for index in job.first_choices),
        "gen_ai.usage.cache_read.input_tokens": sum(all_stats[index].cached_tokens for index in job.first_choices),
        "gen_ai.usage.output_tokens": completion,
        "gen_ai.usage.reasoning.output_tokens": sum(choice.reasoning_tokens for choice in generation.choices),
        "gen_ai.response.finish_reasons": finished or [reason],
        **{name: moment - generation.started for name, moment in first.items() if moment is not None},
        "lightcone.queue_seconds": max(stats.queue_seconds for stats in all_stats),
        "lightcone.passes": passes,
        "lightcone.tokens_per_pass": completion / passes if passes else 0.0,
        "lightcone.denoising_steps": sum(stats.denoising_steps for stats in all_stats),
        "lightcone.blocks": sum(stats.blocks for stats in all_stats),
        "lightcone.draft_tokens": sum(stats.draft_tokens for stats in all_stats),
        "lightcone.accepted_draft_tokens": sum(stats.accepted_draft_tokens for stats in all_stats),
        "lightcone.preemptions": sum(stats.preemptions for stats in all_stats),
    }


def _add_phases(span: RequestSpan, generation: Generation, ended: float) -> None:
    """Spans of the queue, the prefill and the decoding. Of several choices, a phase begins with the first to reach it.

    A choice that the engine has not reported on yet tells nothing; its wait is part of the request's own span.
    """
    started = [choice.stats for choice in generation.choices if choice.stats.queue_seconds > 0]
    if not started:
        return
    begun = generation.started + min(stats.queue_seconds for stats in started)
    span.child("queue", generation.started, begun, {})
    prefilled = [stats.queue_seconds + stats.prefill_seconds for stats in started if stats.prefill_seconds > 0]
    # An answer of one token ends with its prompt.
    decoding = generation.started + min(prefilled) if prefilled else ended
    span.child("prefill", begun, decoding, {"lightcone.cached_tokens": sum(stats.cached_tokens for stats in started)})
    if prefilled:
        span.child("decode", decoding, ended, {"lightcone.passes": sum(stats.passes for stats in started)})
