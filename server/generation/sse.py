"""The form of server-sent events."""

from __future__ import annotations

from server.http.json_codec import encode_json

DONE = b"data: [DONE]\n\n"
"""OpenAI's end of a stream."""
KEEPALIVE = b": keep-alive\n\n"
"""A comment, which readers of server-sent events ignore."""


def sse_event(payload: object) -> bytes:
    """One server-sent event with a JSON payload."""
    return b"data: " + encode_json(payload) + b"\n\n"


def named_event(name: str, payload: object) -> bytes:
    """One server-sent event with a name and a JSON payload."""
    return b"event: " + name.encode() + b"\n" + sse_event(payload)
