"""Fixtures of the server's tests: an application with a fake engine behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx
import pytest

from engine.config import EngineConfig
from server.app import create_app
from server.operation.config import Config, ServerConfig
from server.operation.service import Service
from tests.fakes import FakeEngine


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Api:
    """A client of an application in this process."""

    def __init__(self, http: httpx.AsyncClient, engine: FakeEngine, service: Service) -> None:
        self.http, self.engine, self.service = http, engine, service

    async def complete(self, **body: Any) -> httpx.Response:
        return await self.http.post("/v1/completions", json={"prompt": "Hello", **body})

    async def chat(self, **body: Any) -> httpx.Response:
        messages = [{"role": "user", "content": "Hello"}]
        return await self.http.post("/v1/chat/completions", json={"messages": messages, **body})

    async def respond(self, **body: Any) -> httpx.Response:
        return await self.http.post("/v1/responses", json={"input": "Hello", **body})

    async def message(self, **body: Any) -> httpx.Response:
        messages = [{"role": "user", "content": "Hello"}]
        return await self.http.post("/v1/messages", json={"messages": messages, "max_tokens": 120, **body})


ApiFactory = Callable[..., AbstractAsyncContextManager[Api]]


@asynccontextmanager
async def serving(
    engine: FakeEngine | None = None, *, wait: bool = True, max_running: int = 64, **server: Any
) -> AsyncIterator[Api]:
    engine = engine or FakeEngine()
    app = create_app(Config(ServerConfig(**server), EngineConfig(max_running=max_running)), engine)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http,
    ):
        service: Service = app.state.service
        if wait:
            await asyncio.wait_for(service.loaded.wait(), 10)
        yield Api(http, engine, service)


@pytest.fixture
def serve() -> ApiFactory:
    return serving


@pytest.fixture
async def api(anyio_backend: str) -> AsyncIterator[Api]:
    async with serving() as api:
        yield api


async def until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    """Waits for something that has no event to wait for."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def events_of(response: httpx.Response) -> list[Any]:
    """The payloads of a stream, which must be well formed; [DONE] is left as a string."""
    import json

    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    payloads: list[Any] = []
    for block in response.text.split("\n\n"):
        if block:
            assert block.startswith("data: "), block
            data = block[len("data: ") :]
            payloads.append(data if data == "[DONE]" else json.loads(data))
    return payloads


def text_of(payloads: list[Any], index: int = 0) -> str:
    """What an append-only client ends up with."""
    parts = []
    for payload in payloads:
        for choice in payload["choices"] if payload != "[DONE]" else ():
            if choice["index"] == index:
                parts.append(choice["text"] if "text" in choice else choice["delta"].get("content", ""))
    return "".join(parts)
