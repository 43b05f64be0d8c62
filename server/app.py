"""The ASGI application, put together from its rooms: routes, error handling, middleware, and the service behind."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from server.api import info, tokens
from server.api.chat import route as chat
from server.api.completions import route as completions
from server.api.decisions_api import route as decisions
from server.api.documents import openapi, page
from server.api.fill import route as fill
from server.api.messages_api import route as messages
from server.api.responses_api import route as responses
from server.api.responses_api.store import ResponseStore
from server.engine_link.client import EngineClient
from server.engine_link.link import EngineLink
from server.http.errors import ApiError, ClientGone, ErrorHandler
from server.http.keys import Keys
from server.http.middleware import RequestChecks, RequestIds
from server.operation.config import Config, ServerConfig
from server.operation.service import Service
from server.page import route as live_page
from server.tracing.middleware import Tracing
from server.tracing.tracer import Tracer


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
    service: Service = app.state.service
    service.start()
    try:
        yield
    finally:
        await service.close()


def create_app(config: Config | None = None, engine: EngineLink | None = None) -> FastAPI:
    """The ASGI application. Raises ConfigError.

    engine: for tests; None: the configured engine process is started.
    """
    config = config or Config()
    endpoint = config.server.otlp_traces_endpoint
    tracer = None if endpoint is None else Tracer.open(endpoint)
    service = Service(config, engine or _engine_client(config.server), tracer)
    app = FastAPI(docs_url=None, redoc_url=None, lifespan=_lifespan, redirect_slashes=False)
    app.state.service = service
    app.state.responses = ResponseStore(config.server.max_stored_bytes)
    app.state.created = int(time.time())
    openapi.install(app, needs_key=config.server.has_keys, public_metrics=config.server.public_metrics)
    for module in (
        completions,
        chat,
        responses,
        messages,
        decisions,
        fill,
        info,
        tokens,
        page,
        *([live_page] if config.server.page else []),
    ):
        _answer_head(module.router)
        app.include_router(module.router)
    handle_error = ErrorHandler(service.record_refusal)
    for kind in (ClientGone, ApiError, HTTPException):
        app.add_exception_handler(kind, handle_error)
    _add_middleware(app, config.server, service, handle_error)
    return app


def _answer_head(router: APIRouter) -> None:
    """Has every GET route answer HEAD as well (RFC 9110, 9.3.2); the connection leaves the body out."""
    for route in router.routes:
        if isinstance(route, APIRoute) and route.methods is not None and "GET" in route.methods:
            route.methods.add("HEAD")


def _engine_client(config: ServerConfig) -> EngineClient:
    return EngineClient(stall_timeout=config.engine_stall_timeout, start_timeout=config.engine_start_timeout)


def _add_middleware(app: FastAPI, config: ServerConfig, service: Service, handle_error: ErrorHandler) -> None:
    """Adds the middleware from the inside out."""
    public = live_page.PATHS if config.page else frozenset[str]()
    keys = Keys.load(config.api_keys, config.api_key_file, public_metrics=config.public_metrics, also_public=public)
    app.add_middleware(RequestChecks, service=service, keys=keys, handle_error=handle_error)
    if config.cors_origins:  # outside of the checks: a browser's preflight carries no key, and must read a 401
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after", "x-should-retry"],
        )
    if service.tracer is not None:
        app.add_middleware(Tracing, tracer=service.tracer)
    app.add_middleware(RequestIds)
