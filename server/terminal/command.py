"""`lightcone generate`: reads the flags, asks the server, writes the text; every failure is one line."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing

import httpx
from rich.console import Console

from server.terminal.completion_client import Answer, GenerateError, Prompt, chunks
from server.terminal.local_server import local_server
from server.terminal.parser import make_parser
from server.terminal.screen import Screen, printable

INTERRUPTED = 130
CONNECT_TIMEOUT = 10.0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status."""
    arguments = make_parser().parse_args(argv)
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")  # a terminal that cannot show a character shows another one
    try:
        asyncio.run(_generate(arguments))
    except KeyboardInterrupt:
        return INTERRUPTED
    except GenerateError as exc:
        print(f"lightcone: error: {' '.join(str(exc).split())}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the exit itself would fail to flush
        return 1
    return 0


async def _generate(arguments: argparse.Namespace) -> None:
    prompt = _prompt(arguments)
    url = arguments.url or os.environ.get("LIGHTCONE_URL")
    key = arguments.api_key or os.environ.get("LIGHTCONE_API_KEY")
    async with AsyncExitStack() as stack:
        own = url is None
        if url is None:
            with Console(stderr=True).status("starting the built-in model", spinner="dots"):
                url = await stack.enter_async_context(local_server())
        client = await stack.enter_async_context(_client(url, key, proxies=not own))
        if arguments.watch and sys.stdout.isatty():
            await _watch(client, prompt, arguments.delay)
        else:
            await _stream(client, prompt)


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


def _prompt(arguments: argparse.Namespace) -> Prompt:
    if arguments.suffix is not None and arguments.chat:
        raise GenerateError("--suffix fills a gap in a text: it cannot be combined with --chat")
    if not arguments.delay >= 0:
        raise GenerateError("--delay must not be negative")
    return Prompt(
        text=sys.stdin.read() if arguments.prompt == "-" else arguments.prompt,
        raw=arguments.raw or arguments.suffix is not None,
        suffix=arguments.suffix,
        decoding=arguments.decoding,
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        seed=arguments.seed,
        threshold=arguments.threshold,
        block_length=arguments.block_length,
    )


async def _stream(client: httpx.AsyncClient, prompt: Prompt) -> None:
    """The text alone, as it settles."""
    show = printable if sys.stdout.isatty() else str
    answer = Answer()
    async with aclosing(chunks(client, prompt, drafts=False)) as stream:
        async for chunk in stream:
            shown = len(answer.text)
            answer.apply(chunk)
            sys.stdout.write(show(answer.text[shown:]))
            sys.stdout.flush()
    print(flush=True)


async def _watch(client: httpx.AsyncClient, prompt: Prompt, delay: float) -> None:
    """The text resolving in place. Chunks are read as they come, whatever the pace at which they are shown."""
    begun = time.monotonic()
    arrived: asyncio.Queue[tuple[float, dict[str, object]] | GenerateError | None] = asyncio.Queue()

    async def read() -> None:
        try:
            async with aclosing(chunks(client, prompt, drafts=True)) as stream:
                async for chunk in stream:
                    arrived.put_nowait((time.monotonic(), chunk))
        except GenerateError as exc:
            arrived.put_nowait(exc)
        else:
            arrived.put_nowait(None)

    async def updates() -> AsyncGenerator[tuple[float, dict[str, object]], None]:
        while (item := await arrived.get()) is not None:
            if isinstance(item, GenerateError):
                raise item
            yield item

    answer, end = Answer(), begun
    reader = asyncio.create_task(read())
    try:
        with Screen(prompt) as screen:
            async for at, chunk in updates():
                end = at
                answer.apply(chunk)
                screen.show(answer)
                await asyncio.sleep(delay)
            screen.finish(answer, end - begun)
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
