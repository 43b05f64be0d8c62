"""POST /v1/responses, and what was stored of them."""

from __future__ import annotations

from typing import cast

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.api.common import json_response, service_of
from server.api.generate import Endpoint
from server.api.responses_api.objects import DeletedResponse
from server.api.responses_api.prepare import Exchange, not_found
from server.api.responses_api.store import ResponseStore
from server.http.errors import BadRequest, NotFound

router = APIRouter()


@router.post("/v1/responses")
async def create_response(request: Request) -> Response:
    """Answers a conversation, in items."""
    exchange = Exchange(_store_of(request))
    try:
        return await Endpoint(exchange.parse, exchange.prepare, exchange.writer).respond(request)
    except BadRequest as error:
        raise exchange.renamed(error) from None


@router.get("/v1/responses/{response_id}")
async def get_response(request: Request, response_id: str) -> Response:
    """A stored response."""
    service_of(request).require_model()
    if request.query_params.get("stream", "false") != "false":
        raise BadRequest(
            "'stream' is not supported here: a stored response has ended.", "stream", "unsupported_parameter"
        )
    stored = _store_of(request).get(response_id)
    if stored is None:
        raise NotFound(not_found(response_id), "response_id", "response_not_found")
    return Response(stored.response, media_type="application/json")


@router.delete("/v1/responses/{response_id}")
async def delete_response(request: Request, response_id: str) -> Response:
    """Forgets a stored response. What went on from it keeps its conversation."""
    service_of(request).require_model()
    if not _store_of(request).forget(response_id):
        raise NotFound(not_found(response_id), "response_id", "response_not_found")
    return json_response(DeletedResponse(id=response_id, object="response", deleted=True))


def _store_of(request: Request) -> ResponseStore:
    return cast(ResponseStore, request.app.state.responses)
