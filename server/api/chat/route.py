"""POST /v1/chat/completions, and /invocations, which is a chat or a completion"""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.api.chat.prepare import prepare
from server.api.chat.request import ChatRequest
from server.api.chat.writer import ChatWriter
from server.api.completions.route import COMPLETIONS
from server.api.generate import Endpoint
from server.api.requests import parse_generation

router = APIRouter()

CHAT = Endpoint(partial(parse_generation, ChatRequest), prepare, ChatWriter)


@router.post("/v1/chat/completions")
async def chat_completions(request: Request) -> Response:
    """Answers a conversation."""
    return await CHAT.respond(request)


@router.post("/invocations")
async def invocations(request: Request) -> Response:
    """Answers a conversation, or continues a prompt: whichever the body has. For clients that know one path only."""
    chosen: list[Endpoint[Any]] = []

    def parse(data: Any) -> Any:
        chosen.append(CHAT if isinstance(data, dict) and data.get("messages") is not None else COMPLETIONS)
        return chosen[0].parse(data)

    endpoint: Endpoint[Any] = Endpoint(
        parse,
        lambda call, model, limits: chosen[0].prepare(call, model, limits),
        lambda job, tokenizer: chosen[0].writer(job, tokenizer),
    )
    return await endpoint.respond(request)
