"""POST /v1/fim/completions, POST /infill and POST /v1/edit/completions"""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.api.chat import prepare as chat
from server.api.chat.writer import ChatWriter
from server.api.common import renamed
from server.api.completions.prepare import prepare
from server.api.fill.edit import parse_edit
from server.api.fill.request import NAMES, FimRequest, InfillCompletion, parse_infill
from server.api.fill.response import FimWriter, InfillWriter
from server.api.generate import Endpoint
from server.api.requests import parse_generation
from server.http.errors import BadRequest

router = APIRouter()

FIM = Endpoint(partial(parse_generation, FimRequest), prepare, FimWriter)
EDIT = Endpoint(parse_edit, chat.prepare, ChatWriter)


@router.post("/v1/fim/completions")
async def fim_completions(request: Request) -> Response:
    """Fills the gap between a prompt and a suffix."""
    return await FIM.respond(request)


@router.post("/infill")
async def infill(request: Request) -> Response:
    """Fills the gap between two texts, for editors."""
    asked: list[InfillCompletion] = []

    def parse(data: object) -> InfillCompletion:
        asked.append(parse_infill(data))
        return asked[0]

    endpoint = Endpoint(parse, prepare, lambda job, _: InfillWriter(job, asked[0].n_indent))
    try:
        return await endpoint.respond(request)
    except BadRequest as error:
        raise renamed(error, NAMES) if asked else error from None


@router.post("/v1/edit/completions")
async def edit_completions(request: Request) -> Response:
    """Tells how a region of code should become."""
    return await EDIT.respond(request)
