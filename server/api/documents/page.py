"""GET /docs: the OpenAPI document as one HTML page that loads nothing from anywhere."""

from __future__ import annotations

from html import escape
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse

router = APIRouter()

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #1d2433 }
h1 small { font-size: .5em; color: #667 } code { font-family: ui-monospace, monospace }
details { border: 1px solid #d5dae5; border-radius: 6px; margin: .5rem 0; padding: .5rem .8rem }
summary { cursor: pointer } .method { display: inline-block; min-width: 3.5em; font-weight: 600 }
.get { color: #1769aa } .post { color: #2e7d32 }
table { border-collapse: collapse; margin: .6rem 0; width: 100% }
td, th { border-top: 1px solid #e5e8ef; padding: .25rem .6rem; text-align: left; vertical-align: top }
"""


@router.get("/docs")
async def page(request: Request) -> HTMLResponse:
    """The routes and the fields of their requests."""
    document = request.app.openapi()
    routes = [
        _route(path, method, operation, document["components"]["schemas"])
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    about = document["info"]
    return HTMLResponse(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(about['title'])}</title>"
        f"<style>{_STYLE}</style><h1>{escape(about['title'])} <small>{escape(about['version'])}</small></h1>"
        f"<p>{escape(about.get('summary', ''))}. Machine-readable: <a href=openapi.json>openapi.json</a>.</p>"
        + "".join(routes)
    )


def _route(path: str, method: str, operation: dict[str, Any], components: dict[str, Any]) -> str:
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    tables = "".join(f"<h4>{name}</h4>{_fields(components[name])}" for name in _objects(body, components))
    return (
        f"<details><summary><span class='method {escape(method)}'>{escape(method.upper())}</span> "
        f"<code>{escape(path)}</code> {escape(operation.get('summary', ''))}</summary>"
        f"{tables}</details>"
    )


def _objects(schema: Any, components: dict[str, Any]) -> list[str]:
    """Names of the objects a request is made of, the outermost first."""
    found: list[str] = []
    waiting = [schema]
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, dict):
            name = str(node.get("$ref", "")).rpartition("/")[2]
            if name and name not in found:
                found.append(name)
                waiting.append(components[name])
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
    return found


def _fields(schema: dict[str, Any]) -> str:
    required = schema.get("required", ())
    rows = [
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(_type(field))}</td>"
        f"<td>{'required' if name in required else escape(str(field.get('default', '')))}</td>"
        f"<td>{escape(field.get('description', ''))}</td></tr>"
        for name, field in schema.get("properties", {}).items()
    ]
    return f"<table><tr><th>field<th>type<th>default<th></tr>{''.join(rows)}</table>"


def _type(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_type(option) for option in field["anyOf"])
    if "enum" in field:
        return ", ".join(str(value) for value in field["enum"])
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    kind = str(field.get("type", "any"))
    bounds = [f"{sign} {field[key]}" for key, sign in _BOUNDS.items() if key in field]
    return f"{kind} {', '.join(bounds)}".strip()


_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
