"""POST /v1/messages and /v1/messages/count_tokens"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.api.call import Call
from server.api.chat.prepare import prepare, prompt_of
from server.api.chat.request import ChatRequest
from server.api.common import json_response, parse_body, renamed, service_of
from server.api.generate import Endpoint
from server.api.messages_api.objects import TokenCount
from server.api.messages_api.request import (
    CountTokensRequest,
    MessagesRequest,
    to_chat,
    to_counted_chat,
)
from server.api.messages_api.response import MessageWriter
from server.api.parameters.parsing import parse
from server.api.prepare import Limits
from server.api.requests import parse_generation
from server.generation.job import Job
from server.http.errors import BadRequest
from server.text.served_model import ServedModel

router = APIRouter()

_OF_TOOLS = (
    (re.compile(r"'tools\[(\d+)\]\.function\.parameters\b"), r"'tools[\1].input_schema"),
    (re.compile(r"'tools\[(\d+)\]\.function\b"), r"'tools[\1]"),
)
_OF_CHATS = (
    *_OF_TOOLS,
    (re.compile(r"'messages\[[^']*'"), "'messages'"),  # a chat's messages are counted otherwise
    (re.compile(r"'response_format'"), "'output_config.format'"),
    (re.compile(r"'reasoning_effort'"), "'output_config.effort'"),
    (re.compile(r"'stop'"), "'stop_sequences'"),
)
"""How chats call what a message was asked for, and how Anthropic does; the first two also before the chat is made."""


class Exchange:
    """One request for a message, from its fields to its writer."""

    def __init__(self) -> None:
        self._max_tokens: int | None = None  # until the request has been read

    def parse(self, data: Any) -> ChatRequest:
        """The chat that a request asks for. Raises BadRequest."""
        fields = parse_generation(MessagesRequest, data)
        self._max_tokens = fields.max_tokens
        return to_chat(fields)

    def writer(self, job: Job, _: object) -> MessageWriter:
        """The writer of the message."""
        if self._max_tokens is None:
            raise ValueError("the request has not been read")
        return MessageWriter(job, self._max_tokens)

    def renamed(self, error: BadRequest) -> BadRequest:
        """An error in the names of the request."""
        return renamed(error, _OF_TOOLS if self._max_tokens is None else _OF_CHATS)


async def _prepare(call: Call[ChatRequest], model: ServedModel, limits: Limits) -> Job:
    """A chat as a job. Its length is cut to what the context leaves, which its stop_reason tells."""
    return await prepare(call, model, limits._replace(clip_max_tokens=True))


@router.post("/v1/messages")
async def create_message(request: Request) -> Response:
    """Answers a conversation, in Anthropic's form."""
    exchange = Exchange()
    try:
        return await Endpoint(exchange.parse, _prepare, exchange.writer).respond(request)
    except BadRequest as error:
        raise exchange.renamed(error) from None


@router.post("/v1/messages/count_tokens")
async def count_tokens(request: Request) -> Response:
    """Tokens of the prompt that a conversation is."""
    model = service_of(request).require_model()
    try:
        fields = await parse_body(request, partial(parse, CountTokensRequest))
        model.check_name(fields.model)
        prompt = await prompt_of(to_counted_chat(fields), model)
    except BadRequest as error:
        raise renamed(error, _OF_TOOLS) from None
    return json_response(TokenCount(len(prompt.token_ids)))
