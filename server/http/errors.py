"""The errors a client can be told about, as one exception tree, and their translation to OpenAI's error object."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from engine.errors import RequestError
from server.http.error_forms import Error, ErrorDetail, MessagesError, messages_error, speaks_messages
from server.http.json_codec import encode_json

logger = logging.getLogger("lightcone.server")

INTERNAL_ERROR = "The server had an error while processing your request."

TOO_MANY_CONNECTIONS = "too_many_connections"
"""The code of an answer to a connection beyond the limit."""

SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN})
"""System errors that pass: files, memory or processes are used up for the moment."""

CLIENT_CLOSED_REQUEST = 499
"""The status that proxies log for a client that went away before its answer."""


class ClientGone(Exception):
    """The client went away before its answer was complete."""


class ApiError(Exception):
    """Base of the errors a client is told. The message names the field and what would be valid, and leaks nothing."""

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
        """Response headers: those the error adds, and `x-should-retry` where the answer is known."""
        if self.retry is None:
            return dict(self.extra_headers)
        return {"x-should-retry": "true" if self.retry else "false", **self.extra_headers}

    def body(self) -> Error:
        """OpenAI's error object."""
        return Error(ErrorDetail(self.message, self.type, self.param, self.code))

    def body_at(self, path: str, request_id: str) -> Error | MessagesError:
        """The error object in the form that a path speaks."""
        body = self.body()
        return messages_error(body.error, self.status, request_id) if speaks_messages(path) else body


class BadRequest(ApiError):
    """400: the request can never succeed as it stands."""

    status = 400
    type = "invalid_request_error"
    retry = False


class Unauthorized(ApiError):
    """401: no key, or a wrong one."""

    status = 401
    type = "authentication_error"
    retry = False


class NotFound(ApiError):
    """404: no such route or model."""

    status = 404
    type = "invalid_request_error"
    retry = False


class MethodNotAllowed(ApiError):
    """405: the route exists, the method does not."""

    status = 405
    type = "invalid_request_error"
    retry = False


class BodyTooLarge(ApiError):
    """413: the body has more bytes than the server reads."""

    status = 413
    type = "invalid_request_error"
    retry = False


class Overloaded(ApiError):
    """429: the queue is full. Carries `Retry-After`."""

    status = 429
    type = "rate_limit_error"
    retry = True

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message, None, "queue_full", {"Retry-After": str(retry_after)})


class EngineFailure(ApiError):
    """500: the engine failed this request."""


class Unavailable(ApiError):
    """503: the model is loading, the server is draining, or the engine is down. Carries `Retry-After`."""

    status = 503
    type = "service_unavailable_error"
    retry = True

    def __init__(self, message: str, code: str, retry_after: int = 5, *, close: bool = False) -> None:
        headers = {"Retry-After": str(retry_after)}
        if close:
            headers["Connection"] = "close"
        super().__init__(message, None, code, headers)


class TimedOut(ApiError):
    """504: the request took longer than this server allows.

    It is not a 503, because load balancers send those to another replica, which would begin the same long work again.
    """

    status = 504
    type = "timeout_error"
    retry = False

    def __init__(self, message: str) -> None:
        super().__init__(message, None, "request_timeout")


class Refusal(NamedTuple):
    """A request that was answered with an error before any work was done for it."""

    request_id: str
    status: int
    code: str
    method: str | None = None
    """None where the request could not be read at all."""
    path: str | None = None
    trace_id: str | None = None
    """Of the request's span, where it is traced."""


OnRefused = Callable[[Refusal], None]
"""Called with each refusal, to count and to log it."""


class ErrorHandler:
    """The application's exception handler: every failure before the first byte of an answer ends here."""

    def __init__(self, on_refused: OnRefused) -> None:
        self._on_refused = on_refused

    async def __call__(self, request: Request, exc: Exception) -> Response:
        """The error as a response. It is reported as a refusal, unless the request had been admitted."""
        if isinstance(exc, ClientGone):
            self._report(request, CLIENT_CLOSED_REQUEST, "client_gone")
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        error = to_api_error(exc, request)
        self._report(request, error.status, error.code or "unknown")
        return error_response(error, request.scope)

    def _report(self, request: Request, status: int, code: str) -> None:
        state = request.state
        state.error_code = code
        if not getattr(state, "admitted", False):  # else the request log tells what became of it
            trace_id = getattr(getattr(state, "span", None), "trace_id", None)
            self._on_refused(Refusal(state.request_id, status, code, request.method, _shown_path(request), trace_id))


def error_response(error: ApiError, scope: Scope) -> Response:
    """The error as an HTTP response. scope: of the request, whose path says in which form."""
    body = error.body_at(scope["path"], scope["state"]["request_id"])
    return Response(encode_json(body), error.status, error.headers, "application/json")


def error_bytes(error: ApiError, request_id: str) -> bytes:
    """The error as a whole HTTP/1.1 response, after which the connection is closed."""
    body = encode_json(error.body())
    headers = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
        "x-request-id": request_id,
        **error.headers,
    }
    lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


def too_many_connections() -> Unavailable:
    """The answer to a connection beyond the limit."""
    return Unavailable("The server has too many connections.", TOO_MANY_CONNECTIONS, 1)


def from_request_error(error: RequestError) -> BadRequest:
    """The engine's refusal of a request as a 400; its message and field are fit for clients as they are."""
    return BadRequest(str(error), error.param, error.code)


def to_api_error(exc: Exception, request: Request) -> ApiError:
    """Any exception as the error the client sees. An unexpected one is logged here and never described."""
    if isinstance(exc, ApiError):
        return exc
    if isinstance(exc, HTTPException):
        return _from_http_exception(exc, request)
    if is_shortage(exc):
        logger.warning("out of resources: %s", exc)
        return Unavailable("The server is out of resources; try again shortly.", "out_of_resources", 1)
    logger.error("unexpected error while serving a request", exc_info=exc)
    return ApiError(INTERNAL_ERROR, None, "internal_error")


def is_shortage(exc: object) -> bool:
    """Something of the system's is used up for the moment."""
    return isinstance(exc, OSError) and exc.errno in SHORTAGES


def _from_http_exception(exc: HTTPException, request: Request) -> ApiError:
    if exc.status_code == 404:
        return NotFound(f"Unknown request URL: {request.method} {_shown_path(request)}.", None, "unknown_url")
    if exc.status_code == 405:
        message = f"Not allowed to {request.method} on {_shown_path(request)}."
        return MethodNotAllowed(message, None, "method_not_allowed", dict(exc.headers or {}))
    error = BadRequest(str(exc.detail)) if exc.status_code < 500 else ApiError("The server had an error.")
    error.status = exc.status_code
    return error


def _shown_path(request: Request) -> str:
    """The path, short and printable, so that it can be repeated to the client.

    It is not taken from `request.url`, which the Host header can change.
    """
    path = request.scope["path"]
    printable = "".join(char if char.isprintable() else "?" for char in path)
    return printable if len(printable) <= 200 else printable[:200] + "..."
