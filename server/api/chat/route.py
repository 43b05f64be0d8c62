"""POST /v1/chat/completions"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.api.chat.prepare import prepare
from server.api.chat.request import ChatRequest
from server.api.chat.response import ChatWriter
from server.api.generate import Endpoint

router = APIRouter()

CHAT = Endpoint(ChatRequest, prepare, ChatWriter)


@router.post("/v1/chat/completions")
async def chat_completions(request: Request) -> Response:
    """Answers a conversation."""
    return await CHAT.respond(request)
