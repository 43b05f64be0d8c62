"""What every route needs."""

from __future__ import annotations

from typing import Any, cast

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from server.http.json_codec import encode_json
from server.operation.service import Service


def service_of(request: Request) -> Service:
    """The application's service."""
    return cast(Service, request.app.state.service)


def json_response(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(encode_json(value), status, headers, "application/json")


def takes(model: type[BaseModel]) -> dict[str, Any]:
    """A request body for the OpenAPI document; FastAPI itself never parses these bodies."""
    schema = model.model_json_schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _inlined(schema, schema)}}}}


def _inlined(node: Any, root: dict[str, Any]) -> Any:
    """The schema without references, which would point outside of its place in the OpenAPI document."""
    if isinstance(node, list):
        return [_inlined(item, root) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _inlined(root["$defs"][node["$ref"].rpartition("/")[2]], root)
    return {key: _inlined(value, root) for key, value in node.items() if key != "$defs"}
