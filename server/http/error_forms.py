"""The forms in which an error is written: OpenAI's, and Anthropic's at the paths that speak it."""

from __future__ import annotations

from typing import Literal

import msgspec

MESSAGES_PATH = "/v1/messages"
"""The path at which, and below which, everything is in Anthropic's form."""

_TYPES: dict[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ErrorDetail(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The inner object of OpenAI's error answer."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """OpenAI's error answer."""

    error: ErrorDetail


class MessagesErrorDetail(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The inner object of Anthropic's error answer, and what this server adds: the field at fault, and a code."""

    type: str
    message: str
    param: str | None
    code: str | None


class MessagesError(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Anthropic's error answer."""

    type: Literal["error"]
    error: MessagesErrorDetail
    request_id: str


def speaks_messages(path: str) -> bool:
    """Whether the errors of a path are in Anthropic's form."""
    return path == MESSAGES_PATH or path.startswith(MESSAGES_PATH + "/")


def messages_error(detail: ErrorDetail, status: int, request_id: str) -> MessagesError:
    """An error in Anthropic's form. status: the HTTP status that it has."""
    kind = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return MessagesError("error", MessagesErrorDetail(kind, detail.message, detail.param, detail.code), request_id)
