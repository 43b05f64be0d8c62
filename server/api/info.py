"""Models, probes, metrics and the version."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.api.common import json_response, service_of
from server.http.errors import NotFound
from server.operation.metrics import CONTENT_TYPE
from server.text.served_model import ServedModel

router = APIRouter()

try:
    VERSION = version("lightcone")
except PackageNotFoundError:  # run from a source tree that is not installed
    VERSION = "unknown"


def _describe(model: ServedModel, name: str, created: int) -> dict[str, Any]:
    alias = name.rpartition(":")[2] if name != model.name else None
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "lightcone",
        "root": model.name,
        "parent": None if alias is None else model.name,
        "max_model_len": model.info.max_model_len,
        "decoding": alias or model.info.default_decoding,
        "decodings": [alias] if alias else list(model.info.decodings),
        "block_length": model.info.block_length,
    }


@router.get("/v1/models", tags=["models"], summary="The served model and its aliases, one a decoding mode")
async def list_models(request: Request) -> Response:
    """503 until the model is loaded."""
    model, created = service_of(request).require_model(), request.app.state.created
    return json_response({"object": "list", "data": [_describe(model, name, created) for name in model.names]})


@router.get("/v1/models/{name:path}", tags=["models"], summary="One model or alias")
async def get_model(request: Request, name: str) -> Response:
    """404 for a name that is not served."""
    model = service_of(request).require_model()
    if name not in model.names:
        model.check_name(name)
        raise NotFound(f"The model '{name[:100]}' does not exist.", "model", "model_not_found")
    return json_response(_describe(model, name, request.app.state.created))


@router.head("/health", include_in_schema=False)
@router.get("/health", tags=["operation"], summary="Liveness, answered from memory")
async def health(request: Request) -> Response:
    """503 only when the server has given up."""
    service = service_of(request)
    body = {"status": service.state, "engine": service.engine.state.value, "restarts": service.engine.restarts}
    return json_response(body, 503 if service.state == "failed" else 200)


@router.head("/ready", include_in_schema=False)
@router.get("/ready", tags=["operation"], summary="Readiness: whether new work is welcome")
async def ready(request: Request) -> Response:
    """200 only when the model is loaded, the engine alive and nothing is draining."""
    service = service_of(request)
    if service.ready:
        return json_response({"status": "ready"})
    return json_response({"status": service.state}, 503, {"Retry-After": "1"})


@router.get("/version", tags=["operation"], summary="The server's version")
async def get_version() -> Response:
    """The installed version."""
    return json_response({"version": VERSION})


@router.get("/metrics", tags=["operation"], summary="Prometheus metrics")
async def metrics(request: Request) -> Response:
    """The exposition format."""
    return Response(service_of(request).metrics.render(), headers={"Content-Type": CONTENT_TYPE})
