"""POST /v1/completions"""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.api.completions.prepare import prepare
from server.api.completions.request import CompletionRequest
from server.api.completions.response import CompletionWriter
from server.api.generate import Endpoint
from server.api.requests import parse_generation

router = APIRouter()

COMPLETIONS = Endpoint(partial(parse_generation, CompletionRequest), prepare, CompletionWriter)


@router.post("/v1/completions")
async def completions(request: Request) -> Response:
    """Continues a prompt, or fills the gap before a suffix."""
    return await COMPLETIONS.respond(request)
