"""An answer in the terminal as it arrives: its text alone, or resolving in place, one or two beside each other."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, NamedTuple

import httpx

from server.terminal.completion_client import Answer, GenerateError, Prompt, chunks
from server.terminal.screen import Race, Screen, printable


class Arrival(NamedTuple):
    """A chunk of one of the answers, and when it came."""

    which: int
    at: float
    chunk: dict[str, Any]


async def stream(client: httpx.AsyncClient, prompt: Prompt, answer: Answer) -> None:
    """Writes the text alone, as it settles."""
    show = printable if sys.stdout.isatty() else str
    async with aclosing(chunks(client, prompt, drafts=False)) as arriving:
        async for chunk in arriving:
            shown = len(answer.text)
            answer.apply(chunk)
            sys.stdout.write(show(answer.text[shown:]))
            sys.stdout.flush()
    print(flush=True)


async def watch(client: httpx.AsyncClient, prompt: Prompt, answer: Answer, delay: float) -> None:
    """Shows the text resolving in place, each state for at least `delay` seconds."""
    begun = end = time.monotonic()
    async with _arrivals(client, [prompt]) as arrivals:
        with Screen(prompt) as screen:
            async for arrival in arrivals:
                end = arrival.at
                answer.apply(arrival.chunk)
                screen.show(answer)
                await asyncio.sleep(delay)
            screen.finish(answer, end - begun)


async def race(client: httpx.AsyncClient, prompts: Sequence[Prompt], delay: float) -> None:
    """Shows the answers to several requests resolving beside each other, in the order in which they arrive."""
    begun = time.monotonic()
    answers = [Answer() for _ in prompts]
    ends = [begun for _ in prompts]
    async with _arrivals(client, prompts) as arrivals:
        with Race([prompt.decoding or "" for prompt in prompts]) as screen:
            async for arrival in arrivals:
                ends[arrival.which] = arrival.at
                answers[arrival.which].apply(arrival.chunk)
                screen.show(answers)
                await asyncio.sleep(delay / len(prompts))
            screen.finish(answers, [end - begun for end in ends])


@asynccontextmanager
async def _arrivals(
    client: httpx.AsyncClient, prompts: Sequence[Prompt]
) -> AsyncGenerator[AsyncGenerator[Arrival, None], None]:
    """The chunks of all answers. They are read as they come, whatever the pace at which they are taken.

    Raises GenerateError when what came before an error has been taken.
    """
    arrived: asyncio.Queue[Arrival | GenerateError | None] = asyncio.Queue()

    async def read(which: int, prompt: Prompt) -> None:
        try:
            async with aclosing(chunks(client, prompt, drafts=True)) as arriving:
                async for chunk in arriving:
                    arrived.put_nowait(Arrival(which, time.monotonic(), chunk))
        except GenerateError as exc:
            arrived.put_nowait(exc)
        else:
            arrived.put_nowait(None)

    async def taken() -> AsyncGenerator[Arrival, None]:
        running = len(prompts)
        while running:
            item = await arrived.get()
            if isinstance(item, GenerateError):
                raise item
            if item is None:
                running -= 1
            else:
                yield item

    readers = [asyncio.create_task(read(which, prompt)) for which, prompt in enumerate(prompts)]
    try:
        yield taken()
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
