"""POST /v1/chat/completions"""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.api.chat.prepare import prepare
from server.api.chat.request import ChatRequest
from server.api.chat.response import ChatWriter
from server.api.generate import Endpoint
from server.api.requests import parse_generation

router = APIRouter()

CHAT = Endpoint(partial(parse_generation, ChatRequest), prepare, ChatWriter)


@router.post("/v1/chat/completions")
async def chat_completions(request: Request) -> Response:
    """Answers a conversation."""
    return await CHAT.respond(request)
