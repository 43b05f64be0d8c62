"""The built-in model served for one command, which the server does not outlive."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

from server.child_server import ChildServer, ServerStartError
from server.terminal.completion_client import GenerateError

START_TIMEOUT = 120.0
OPTIONS = ("--log-level", "info", "--drain-timeout", "1", "--calibration-seconds", "0.5")


@asynccontextmanager
async def local_server(on_loading: Callable[[dict[str, Any]], None]) -> AsyncGenerator[str, None]:
    """Serves the built-in model on a free port; yields its URL. Raises GenerateError if it does not start.

    on_loading: told how far the model is, as the server tells it, from another thread.
    No LIGHTCONE_* variable reaches the server: those of a shell configure servers that are meant to stay.
    """
    environ = {name: value for name, value in os.environ.items() if not name.startswith("LIGHTCONE_")}
    server = ChildServer(OPTIONS, env=environ)
    try:
        # In threads, so that an interrupt is noticed at once. A wait that was cut short ends with the server.
        await asyncio.to_thread(server.wait_ready, START_TIMEOUT, on_loading)
        yield server.url
    except ServerStartError as error:
        raise GenerateError(f"the built-in server {error}") from None
    finally:
        server.stop()
