"""The application: routes, error handling, the gate in front, and the engine behind."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from engine.errors import RequestError
from server.api import docs_page as docs
from server.api import generation, info, openapi, tokens
from server.engine_link.client import EngineClient
from server.generation.stream import ClientGone
from server.http.errors import ApiError, handle_error, record_refusal
from server.http.keys import Keys
from server.http.middleware import Gate, RequestIds
from server.operation.config import Config
from server.operation.service import Service


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
    service: Service = app.state.service
    service.start()
    try:
        yield
    finally:
        await service.close()


async def _client_gone(request: Request, exc: Exception) -> Response:
    """Nobody reads this answer; 499 is what proxies log for it."""
    record_refusal(request, 499, "client_gone")
    return Response(status_code=499)


def create_app(config: Config | None = None, engine: EngineClient | None = None) -> FastAPI:
    """The ASGI application. `engine` is for tests; by default the configured engine process is started."""
    config = config or Config()
    engine = engine or EngineClient(
        stall_timeout=config.server.engine_stall_timeout, start_timeout=config.server.engine_start_timeout
    )
    service = Service(config, engine)
    app = FastAPI(
        title="Lightcone",
        version=info.VERSION,
        summary="OpenAI-compatible inference for diffusion language models",
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan,
        redirect_slashes=False,
    )
    app.state.service = service
    openapi.install(app)
    app.state.created = int(time.time())
    for module in (generation, info, tokens, docs):
        app.include_router(module.router)
    app.add_exception_handler(ClientGone, _client_gone)
    for kind in (ApiError, RequestError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, handle_error)
    app.add_middleware(Gate, service=service, keys=Keys.from_config(config.server))
    if config.server.cors_origins:  # outside of the gate: a browser's preflight carries no key, and must read a 401
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.server.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after", "x-should-retry"],
        )
    app.add_middleware(RequestIds)
    return app
