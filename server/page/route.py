"""GET / and the files that the page loads. They hold no secret and need no key; what the page asks the API for does."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

router = APIRouter()

STATIC = Path(__file__).parent / "static"
INDEX = "index.html"
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

FILES = (
    "style.css", "icon.svg",
    "app.js", "api.js", "recording.js", "lane.js", "weave.js", "player.js", "fields.js", "snippets.js", "monitor.js",
    "dom.js",
)  # fmt: skip
"""Everything that the page loads. The list is closed: no part of a request ever becomes a path on the disk."""

PATHS = frozenset({"/", *(f"/page/{name}" for name in FILES)})
"""The paths that need no key."""

HEADERS = {
    # The page loads its own files, speaks to its own server, and is in no frame. Nothing inline runs, and no string
    # becomes markup: a model's answer is text, whatever it says.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Kept, and asked about each time: after an upgrade no browser mixes old files with new ones.
    "Cache-Control": "no-cache",
}


class _File(NamedTuple):
    content: bytes
    etag: str


@cache
def _read(name: str) -> _File:
    """A file of the page, read when it is first asked for."""
    content = (STATIC / name).read_bytes()
    return _File(content, f'"{hashlib.sha256(content).hexdigest()[:32]}"')


@router.get("/")
async def index(request: Request) -> Response:
    """The page."""
    return _answer(request, INDEX)


@router.get("/page/{name}")
async def file(request: Request, name: str) -> Response:
    """A file that the page loads. 404 for any other name."""
    if name not in FILES:
        raise HTTPException(404)
    return _answer(request, name)


def _answer(request: Request, name: str) -> Response:
    found = _read(name)
    headers = {**HEADERS, "ETag": found.etag}
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if found.etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(found.content, headers={**headers, "Content-Type": CONTENT_TYPES[Path(name).suffix]})
