"""POST /v1/decisions"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.api.common import parse_body
from server.api.decisions_api.prepare import prepare
from server.api.decisions_api.request import parse_decisions
from server.api.decisions_api.response import DecisionWriter
from server.api.generate import open_service, run_job

router = APIRouter()


@router.post("/v1/decisions")
async def create_decision(request: Request) -> Response:
    """Answers questions whose possible answers are known, with probabilities."""
    _, model = open_service(request)
    decisions = await prepare(await parse_body(request, parse_decisions), model)
    return await run_job(decisions.job, DecisionWriter(decisions, model.info.end_token_ids), request)
