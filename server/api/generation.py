"""Completions and chats."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.api.common import json_response, service_of, takes
from server.api.forms import FORMS
from server.api.requests import ChatRequest, CompletionRequest, parse_generation
from server.generation.job import Job, chat_job, completion_job
from server.generation.request_log import Journal
from server.generation.run import Generation
from server.generation.stream import ClientGone, EventStream, chunks, until_gone
from server.http.body import read_json
from server.http.errors import ApiError, TimedOut
from server.operation.service import Service
from server.text.served_model import ServedModel

router = APIRouter()


@router.post(
    "/v1/completions", tags=["generation"], summary="Continue a prompt", openapi_extra=takes(CompletionRequest)
)
async def completions(request: Request) -> Response:
    """OpenAI's completions."""
    service = service_of(request)
    model = service.require_model()
    service.check_queue()
    data = await read_json(request, service.config.server)
    params = parse_generation(CompletionRequest, "completions", data)
    job = await completion_job(params, model, service.config.server.max_choices)
    return await _run(job, model, service, request)


@router.post(
    "/v1/chat/completions", tags=["generation"], summary="Answer a conversation", openapi_extra=takes(ChatRequest)
)
async def chat_completions(request: Request) -> Response:
    """OpenAI's chat completions."""
    service = service_of(request)
    model = service.require_model()
    service.check_queue()
    data = await read_json(request, service.config.server)
    params = parse_generation(ChatRequest, "chat", data)
    job = await chat_job(params, model, service.config.server.max_choices)
    return await _run(job, model, service, request)


async def _run(job: Job, model: ServedModel, service: Service, request: Request) -> Response:
    if job.grammar is not None and service.grammars is not None:
        await service.grammars.check(job.grammar, job.grammar_field)
    service.admit(job)
    request.state.admitted = True  # from here on the journal tells what became of it
    generation = Generation(service.engine, job, model.tokenizer)
    text_by = model.tokenizer if service.config.server.log_text else None
    journal = Journal(generation, service.metrics, request.state.request_id, text_by)
    if job.stream:
        return _stream(generation, model, service, journal)
    try:
        return await until_gone(_answer(generation, model, service, journal), request.receive)
    except Exception as exc:
        journal.end(499 if isinstance(exc, ClientGone) else exc.status if isinstance(exc, ApiError) else 500, exc)
        raise


def _timeout(service: Service) -> ApiError:
    seconds = service.config.server.request_timeout
    return TimedOut(f"The request was not finished within {seconds:g} s.")


async def _answer(generation: Generation, model: ServedModel, service: Service, journal: Journal) -> Response:
    form = FORMS[generation.job.endpoint](generation.job, model.tokenizer)
    try:
        async with asyncio.timeout(service.config.server.request_timeout), generation:
            tokens = await generation.finish()
    except TimeoutError:
        raise _timeout(service) from None
    journal.end(200, None)
    return json_response(form.answer(generation, tokens))


def _stream(generation: Generation, model: ServedModel, service: Service, journal: Journal) -> Response:
    form = FORMS[generation.job.endpoint](generation.job, model.tokenizer)
    deadline = generation.started + service.config.server.request_timeout
    options = service.config.server
    return EventStream(
        chunks(
            generation, form, deadline=deadline, expired=lambda: _timeout(service),
            keepalive=options.sse_keepalive, on_chunk=journal.chunk,
        ),
        on_end=journal.end,
        stall_timeout=options.stream_stall_timeout,
    )  # fmt: skip
