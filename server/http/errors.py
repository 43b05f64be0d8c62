"""Every error a client can be told about, in one tree, and the one place that turns them into OpenAI's envelope."""

from __future__ import annotations

import logging
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from engine.errors import RequestError
from server.http.json_codec import encode_json

logger = logging.getLogger("lightcone.server")


class ApiError(Exception):
    """Base of everything a client is told. The message names the field and what would be valid, and leaks nothing."""

    status = 500
    type = "server_error"
    retry: bool | None = None
    """Whether sending the same request again may help; None leaves it to the client."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.extra_headers = headers or {}

    @property
    def headers(self) -> dict[str, str]:
        """Response headers: what the error adds, and `x-should-retry` where the answer is known."""
        if self.retry is None:
            return dict(self.extra_headers)
        return {"x-should-retry": "true" if self.retry else "false", **self.extra_headers}

    def body(self) -> dict[str, Any]:
        """OpenAI's error envelope."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class BadRequest(ApiError):
    """The request can never succeed as it stands."""

    status = 400
    type = "invalid_request_error"
    retry = False


class Unauthorized(ApiError):
    """No key, or a wrong one."""

    status = 401
    type = "authentication_error"
    retry = False


class NotFound(ApiError):
    """No such route or model."""

    status = 404
    type = "invalid_request_error"
    retry = False


class MethodNotAllowed(ApiError):
    """The route exists, the method does not."""

    status = 405
    type = "invalid_request_error"
    retry = False


class BodyTooLarge(ApiError):
    """More bytes than the server reads."""

    status = 413
    type = "invalid_request_error"
    retry = False


class Overloaded(ApiError):
    """The queue is full. Carries `Retry-After`."""

    status = 429
    type = "rate_limit_error"
    retry = True

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message, None, "queue_full", {"Retry-After": str(retry_after)})


class EngineFailure(ApiError):
    """The engine failed this request."""

    status = 500
    type = "server_error"


class Unavailable(ApiError):
    """Loading, draining, or the engine is down. Carries `Retry-After`."""

    status = 503
    type = "service_unavailable_error"
    retry = True

    def __init__(self, message: str, code: str, retry_after: int = 5, *, close: bool = False) -> None:
        headers = {"Retry-After": str(retry_after)}
        if close:
            headers["Connection"] = "close"
        super().__init__(message, None, code, headers)


class TimedOut(ApiError):
    """The request took longer than this server lets any. Not a 503: balancers send those to another replica, which
    would begin the same long work again."""

    status = 504
    type = "timeout_error"
    retry = False

    def __init__(self, message: str) -> None:
        super().__init__(message, None, "request_timeout")


def from_request_error(error: RequestError) -> BadRequest:
    """The engine's door speaks of one choice; its message and field are already fit for the wire."""
    return BadRequest(str(error), error.param, error.code)


def _from_http_exception(exc: HTTPException, request: Request) -> ApiError:
    if exc.status_code == 404:
        return NotFound(f"Unknown request URL: {request.method} {_shown(request)}.", None, "unknown_url")
    if exc.status_code == 405:
        message = f"Not allowed to {request.method} on {_shown(request)}."
        return MethodNotAllowed(message, None, "method_not_allowed", dict(exc.headers or {}))
    error = BadRequest(str(exc.detail)) if exc.status_code < 500 else ApiError("The server had an error.")
    error.status = exc.status_code
    return error


def _shown(request: Request) -> str:
    """The path as it may be repeated to the client: short, printable. Not of `request.url`, which the Host header can
    bend."""
    path = request.scope["path"]
    printable = "".join(char if char.isprintable() else "?" for char in path)
    return printable if len(printable) <= 200 else printable[:200] + "..."


def to_api_error(exc: Exception, request: Request) -> ApiError:
    """Any exception as the error the client sees. What is not deliberate is logged here and never described."""
    if isinstance(exc, ApiError):
        return exc
    if isinstance(exc, RequestError):
        return from_request_error(exc)
    if isinstance(exc, HTTPException):
        return _from_http_exception(exc, request)
    logger.error("unexpected error while serving a request", exc_info=exc)
    return ApiError("The server had an error while processing your request.", None, "internal_error")


def error_response(error: ApiError) -> Response:
    """The error as an HTTP response."""
    return Response(encode_json(error.body()), error.status, error.headers, "application/json")


async def handle_error(request: Request, exc: Exception) -> Response:
    """The exception handler of the application: every failure before the first byte ends here, counted and logged."""
    error = to_api_error(exc, request)
    record_refusal(request, error.status, error.code or "unknown")
    return error_response(error)


def record_refusal(request: Request, status: int, code: str) -> None:
    """Counts and logs a request that no work was done for. Of one that was let in, the journal tells."""
    if getattr(request.state, "admitted", False):
        return
    request.app.state.service.metrics.record_rejection(code)
    fields = {
        "request_id": request.state.request_id, "method": request.method, "path": _shown(request),
        "status": status, "code": code,
    }  # fmt: skip
    logger.info("refused", extra={"fields": fields})
