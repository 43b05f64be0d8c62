"""GET /docs: the OpenAPI document as one HTML page that loads nothing from anywhere."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse

from server.api.documents.openapi import WITHOUT_USE

router = APIRouter()

_STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf6; --ink: #191b20; --soft: #5d626c; --line: #dedbd2; --get: #2f68c0;
  --post: #2f7a55; --delete: #b9442c; --mono: ui-monospace, "SF Mono", Consolas, "DejaVu Sans Mono", monospace }
@media (prefers-color-scheme: dark) { :root { --paper: #111317; --ink: #ebe8e1; --soft: #9a9da5; --line: #2a2e36;
  --get: #6da8f4; --post: #6dbf93; --delete: #f0836a } }
body { margin: 0 auto; padding: 0 clamp(1rem, 4vw, 2.5rem) 3rem; max-width: 68rem; background: var(--paper);
  color: var(--ink); font: 0.9375rem/1.5 Inter, system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif }
h1 { font: 400 clamp(1.5rem, 3.4vw, 2.25rem)/1.25 Charter, "Bitstream Charter", "Noto Serif", Georgia, serif;
  margin: clamp(1.25rem, 5vh, 3rem) 0 0.25rem }
h1 small { font-size: 0.5em } h1 small, p, th, td:nth-child(n + 2) { color: var(--soft) }
h4 { font-weight: 600; margin: 1.25rem 0 0.25rem } a { color: inherit; text-underline-offset: 0.2em }
code, td:first-child { font: 0.875em/1.6 var(--mono); overflow-wrap: anywhere }
details { border-top: 1px solid var(--line) } details:last-of-type { border-bottom: 1px solid var(--line) }
summary { cursor: pointer; padding: 0.6rem 0 }
summary:focus-visible { outline: 2px solid var(--get); outline-offset: 2px }
.method { display: inline-block; min-width: 4.5em; font-weight: 600 } .get { color: var(--get) }
.post { color: var(--post) } .delete { color: var(--delete) }
table { border-collapse: collapse; margin: 0.25rem 0 1.5rem; width: 100% } th { font-weight: 400; font-size: 0.8125rem }
td, th { border-top: 1px solid var(--line); padding: 0.35rem 1.25rem 0.35rem 0; text-align: left; vertical-align: top }
td:first-child { color: var(--ink); min-width: 13rem }
td:last-child { color: var(--ink); padding-right: 0; min-width: 40% }
@media (max-width: 44rem) { tr { display: block; border-top: 1px solid var(--line); padding: 0.4rem 0 }
  th, td:empty { display: none } tr:has(th) { display: none } .method { min-width: 0; padding-right: 0.5em }
  td { display: block; border: 0; padding: 0 } }
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
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{escape(about['title'])}</title>"
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
    """The fields as a table; those that change nothing come last."""
    required = schema.get("required", ())
    fields = sorted(schema.get("properties", {}).items(), key=lambda item: WITHOUT_USE in item[1])
    rows = [
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(_type(field))}</td>"
        f"<td>{'required' if name in required else escape(_default(field))}</td>"
        f"<td>{escape(field.get('description', ''))}</td></tr>"
        for name, field in fields
    ]
    return f"<table><tr><th>field<th>type<th>default<th></tr>{''.join(rows)}</table>"


def _default(field: dict[str, Any]) -> str:
    default = field.get("default")
    return "" if default is None else _value(default)


def _type(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_type(option) for option in field["anyOf"])
    if "enum" in field:
        return ", ".join(map(_value, field["enum"]))
    if "const" in field:
        return _value(field["const"])
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    kinds = field.get("type", "any")
    kind = kinds if isinstance(kinds, str) else " or ".join(kinds)
    bounds = [f"{sign} {field[key]}" for key, sign in _BOUNDS.items() if key in field]
    return f"{kind} {', '.join(bounds)}".strip()


def _value(value: Any) -> str:
    """As JSON, texts without quotes."""
    return value if isinstance(value, str) else json.dumps(value)


_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
