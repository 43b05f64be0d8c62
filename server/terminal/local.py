"""A server of one's own: started for one command, gone with it, however the command ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

import httpx

from server.terminal.api import GenerateError

START_TIMEOUT = 120.0
STOP_TIMEOUT = 5.0
OPTIONS = ("--host", "127.0.0.1", "--port", "0", "--log-level", "info", "--drain-timeout", "1",
           "--calibration-seconds", "0.5")  # fmt: skip


@asynccontextmanager
async def local_server() -> AsyncGenerator[str, None]:
    """Serves the built-in model on a free port; yields its URL. Raises GenerateError if it does not start.

    The child leaves when its standard input ends, so it does not outlive this process even if that is killed. It is in
    a session of its own: an interrupt from the terminal is for this process alone.
    """
    environ = {name: value for name, value in os.environ.items() if not name.startswith("LIGHTCONE_")}
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "server.terminal.local"),
            cwd=Path(
                __file__
            ).parent.parent.parent,  # `-m` looks there first; the caller's directory may hold a `server`
            env=environ,
            stdin=asyncio.subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(START_TIMEOUT):
                url = await _until_ready(process, log)
            yield url
        except TimeoutError:
            raise GenerateError(f"the built-in server was not ready within {START_TIMEOUT:g} s") from None
        finally:
            await _stop(process)


async def _until_ready(process: asyncio.subprocess.Process, log: IO[bytes]) -> str:
    url: str | None = None
    async with httpx.AsyncClient(trust_env=False) as client:
        while process.returncode is None:
            url = url or _find_url(log)
            if url is not None:
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get(f"{url}/ready")).status_code == 200:
                        return url
            await asyncio.sleep(0.05)
    log.seek(0)
    lines = log.read().decode("utf-8", "replace").split("\n")
    reason = next((line for line in reversed(lines) if line.strip()), f"exit status {process.returncode}")
    raise GenerateError(f"the built-in server did not start: {reason.removeprefix('lightcone: error: ')}")


def _find_url(log: IO[bytes]) -> str | None:
    """The address the server chose, once it has logged it."""
    log.seek(0)
    for line in log.read().split(b"\n"):
        with contextlib.suppress(ValueError):
            fields = json.loads(line)
            if isinstance(fields, dict) and isinstance(fields.get("port"), int):
                return f"http://127.0.0.1:{fields['port']}"
    return None


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(STOP_TIMEOUT):
            await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()


def main() -> int:
    """The child: a server that leaves with whoever holds its standard input."""
    from server.__main__ import main as lightcone

    threading.Thread(target=_leave_at_end_of_input, daemon=True).start()
    return lightcone(["serve", *OPTIONS])


def _leave_at_end_of_input() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
