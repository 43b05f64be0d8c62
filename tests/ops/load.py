"""A small steady load that checks whether every answer is complete."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from loadtest.stream_reader import EventLines

PROMPT = "Once upon a time there was a little dog who lived in a small house at the edge of the wood."
REQUEST_SECONDS = 60.0
PAUSE = 0.1
"""Seconds between two requests of one worker: the machine is small."""


@dataclass(frozen=True)
class Outcome:
    """How one request went. Times are those of `time.monotonic`."""

    stream: bool
    started: float
    ended: float
    error: str | None
    """None: answered completely."""


@dataclass(frozen=True)
class Chunk:
    """One event of a stream."""

    at: float
    text: str
    finish_reason: str | None


class BrokenStream(Exception):
    """A stream that ended without [DONE], or with an error inside."""


def stream(client: httpx.Client, body: dict[str, Any]) -> Iterator[Chunk]:
    """The chunks of a streamed completion as they arrive. Raises BrokenStream or an httpx error."""
    with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
        if response.status_code != 200:
            response.read()
            raise BrokenStream(f"status {response.status_code}: {response.text[:200]}")
        lines = EventLines()
        for payload in (payload for data in response.iter_bytes() for payload in lines.feed(data)):
            if payload == b"[DONE]":
                return
            event = json.loads(payload)
            if "error" in event:
                raise BrokenStream(str(event["error"]))
            for choice in event["choices"]:
                yield Chunk(time.monotonic(), choice["text"], choice["finish_reason"])
    raise BrokenStream("the stream ended without [DONE]")


def ask(client: httpx.Client, body: dict[str, Any]) -> str | None:
    """Sends one request and reads its answer. Returns what is missing from it."""
    try:
        if body.get("stream"):
            chunks = list(stream(client, body))
            return None if chunks and chunks[-1].finish_reason == "length" else "the stream has no finish_reason"
        response = client.post("/v1/completions", json=body)
        if response.status_code != 200:
            return f"status {response.status_code}: {response.text[:200]}"
        tokens = response.json()["usage"]["completion_tokens"]
        return None if tokens == body["max_tokens"] else f"{tokens} tokens instead of {body['max_tokens']}"
    except (httpx.HTTPError, BrokenStream, ValueError, KeyError) as exc:
        return f"{type(exc).__name__}: {exc}"


class Load:
    """Workers that ask one after the other: streamed and whole, short and long, over kept and fresh connections."""

    def __init__(self, url: str, workers: int) -> None:
        self._url = url
        self._stop = threading.Event()
        self._numbers = itertools.count()
        self._threads = [threading.Thread(target=self._work, args=(index,), daemon=True) for index in range(workers)]
        self.outcomes: list[Outcome] = []

    @contextmanager
    def running(self) -> Iterator[Load]:
        """Loads while the block runs; afterwards every request has ended."""
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(REQUEST_SECONDS + 10)

    @property
    def failures(self) -> list[Outcome]:
        """The requests that were not answered completely."""
        return [outcome for outcome in self.outcomes if outcome.error is not None]

    def _work(self, index: int) -> None:
        keep_alive = index % 2 == 0
        limits = httpx.Limits(max_keepalive_connections=1 if keep_alive else 0)
        with httpx.Client(base_url=self._url, timeout=REQUEST_SECONDS, trust_env=False, limits=limits) as client:
            while not self._stop.is_set():
                number = next(self._numbers)
                long = number % 5 == 0
                body = {
                    "prompt": PROMPT, "seed": number, "ignore_eos": True, "stream": number % 2 == 0,
                    "max_tokens": 300 if long else 32, "decoding": "ar" if long else "auto",
                }  # fmt: skip
                started = time.monotonic()
                error = ask(client, body)
                self.outcomes.append(Outcome(bool(body["stream"]), started, time.monotonic(), error))
                self._stop.wait(PAUSE)
