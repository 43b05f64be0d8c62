"""What the commands have in common: the server they speak to, and how they end."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
from rich.console import Console

from server.terminal.completion_client import GenerateError
from server.terminal.local_server import local_server

INTERRUPTED = 130
CONNECT_TIMEOUT = 10.0
STARTING = "starting the built-in model"
MEGA = 1e6


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """The flags that say which server is asked."""
    server = parser.add_argument_group("server")
    server.add_argument(
        "--url",
        help="a running server (default: $LIGHTCONE_URL; else the built-in model is served while the command runs)",
    )
    server.add_argument("--api-key", metavar="KEY", help="(default: $LIGHTCONE_API_KEY)")


@asynccontextmanager
async def connected(arguments: argparse.Namespace) -> AsyncGenerator[httpx.AsyncClient, None]:
    """A client of the server that the flags or the environment name, or of one of its own. Raises GenerateError."""
    url = arguments.url or os.environ.get("LIGHTCONE_URL")
    key = arguments.api_key or os.environ.get("LIGHTCONE_API_KEY")
    async with AsyncExitStack() as stack:
        own = url is None
        if url is None:
            with Console(stderr=True).status(STARTING, spinner="dots") as status:
                url = await stack.enter_async_context(
                    local_server(lambda state: status.update(f"{STARTING}: {_described(state)}"))
                )
        yield await stack.enter_async_context(_client(url, key, proxies=not own))


def _described(state: dict[str, Any]) -> str:
    """How far a model is, from what /ready says."""
    total = state["total_bytes"] / MEGA
    known = f", {state['bytes'] / MEGA:.1f} of {total:.1f} MB" if total else ""
    return f"{state['stage']}{known}, {state['seconds']:.0f} s"


def _client(url: str, key: str | None, *, proxies: bool) -> httpx.AsyncClient:
    try:
        return httpx.AsyncClient(
            base_url=url.rstrip("/").removesuffix("/v1"),
            headers={"Authorization": f"Bearer {key}"} if key else None,
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT),
            trust_env=proxies,
        )
    except httpx.InvalidURL as exc:
        raise GenerateError(f"not a URL: {exc}") from None


def one_line(error: GenerateError) -> str:
    """An error as the user is told it."""
    return f"lightcone: error: {' '.join(str(error).split())}"


def exit_status(command: Callable[[asyncio.Runner], None]) -> int:
    """Runs a command. Returns its exit status; every failure is one line."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")  # a terminal that cannot show a character shows another one
    try:
        with asyncio.Runner() as runner:
            command(runner)
    except KeyboardInterrupt:
        return INTERRUPTED
    except GenerateError as exc:
        print(one_line(exc), file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the exit itself would fail to flush
        return 1
    return 0
