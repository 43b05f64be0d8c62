"""The way of a generation request, the same at every endpoint: parse, prepare, admit, answer.

Each stage hands a frozen value to the next and is not asked again: a Call (fields, decoding mode, grammar), a Job
(token ids, limits, seeds, one engine request a choice), a Generation (entering it submits the requests, leaving it
drops what is unfinished), a Response. What differs between endpoints is in their `Endpoint`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic

from starlette.requests import Request
from starlette.responses import Response

from engine.request import Grammar
from server.api.call import Call, Fields, validate
from server.api.common import parse_body, service_of
from server.api.prepare import Limits
from server.generation.answer import TimeLimits, answer_streamed, answer_whole
from server.generation.generation import Generation
from server.generation.job import Job, RequestedGrammar
from server.generation.request_log import RequestLog
from server.generation.writer import AnswerWriter
from server.http.errors import BadRequest
from server.operation.service import Service
from server.text.served_model import ServedModel
from server.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Endpoint(Generic[Fields]):
    """An endpoint that generates: its fields, its preparation, and the writer of its answers."""

    parse: Callable[[Any], Fields]
    """The request model's fields out of a JSON value; it may run in a thread. Raises BadRequest."""
    prepare: Callable[[Call[Fields], ServedModel, Limits], Awaitable[Job]]
    """Raises BadRequest."""
    writer: Callable[[Job, Tokenizer], AnswerWriter]

    async def respond(self, request: Request) -> Response:
        """Serves one request. Raises ApiError, or ClientGone."""
        service, model = open_service(request)
        call = await parse_body(request, lambda data: validate(self.parse(data), model))
        job = await self.prepare(call, model, _limits_of(service))
        job = dataclasses.replace(job, tells_metrics=service.config.server.per_request_metrics)
        return await run_job(job, self.writer(job, model.tokenizer), request)


async def run_job(job: Job, writer: AnswerWriter, request: Request) -> Response:
    """Lets a job in and answers it, whole or as a stream. Raises ApiError, or ClientGone."""
    service = service_of(request)
    model, options = service.require_model(), service.config.server
    generation = await _admit(job, model, service, request)
    limits = TimeLimits(options.request_timeout, options.stream_stall_timeout, options.sse_keepalive)
    text_by = model.tokenizer if options.log_text else None
    span = getattr(request.state, "span", None)
    log = RequestLog(generation, service.metrics, request.state.request_id, text_by, span)
    if job.stream is not None:
        return answer_streamed(generation, writer, log, limits)
    return await answer_whole(generation, writer, log, limits, request)


def open_service(request: Request) -> tuple[Service, ServedModel]:
    """Refuses work that cannot be taken at all, before its body is read: 503 while loading, 429 with a full queue."""
    service = service_of(request)
    model = service.require_model()
    service.admission.check_queue()
    return service, model


def _limits_of(service: Service) -> Limits:
    options = service.config.server
    return Limits(options.max_choices, options.clip_max_tokens)


async def _admit(job: Job, model: ServedModel, service: Service, request: Request) -> Generation:
    """Lets a job in; entering the Generation submits its requests.

    Raises BadRequest for a grammar that does not compile, Overloaded or Unavailable.
    """
    if job.grammar is not None and service.grammars is not None:
        await _check_grammar(job.grammar, service.grammars.check)
    service.admission.check_job(len(job.choices), sum(len(choice.prompt_token_ids) for choice in job.requests))
    request.state.admitted = True  # from here on the request log tells what became of it
    return Generation(service.engine, job, model.tokenizer, service.metrics.record_tokens)


async def _check_grammar(asked: RequestedGrammar, check: Callable[[Grammar, str], Awaitable[None]]) -> None:
    """Raises BadRequest for a grammar that does not compile; it names the one at fault of those it was made of."""
    try:
        await check(asked.grammar, asked.param)
    except BadRequest:
        for source in asked.sources:
            await check(source.grammar, source.param)
        raise
