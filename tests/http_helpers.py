"""Functions that tests of several packages share: requests, streams, metrics, waiting."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[1]


def plain_environment(*more: str) -> dict[str, str]:
    """This process's environment without what would configure a client, point it elsewhere or size its terminal.

    more: further prefixes of names to leave out.
    """
    unwanted = (
        "LIGHTCONE_", "OPENAI_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "COLUMNS", "LINES", "NO_COLOR", *more
    )  # fmt: skip
    return {name: value for name, value in os.environ.items() if not name.upper().startswith(unwanted)}


def wait_for(what: str, condition: Callable[[], bool], seconds: float = 20.0) -> float:
    """Waits for something outside of this process; returns the seconds it took. An error of httpx counts as no."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        try:
            if condition():
                return time.monotonic() - started
        except httpx.HTTPError:
            pass
        time.sleep(0.01)
    raise AssertionError(f"waited {seconds:g} s in vain: {what}")


def metric_total(page: str, name: str, *labels: str) -> float:
    """The sum of a metric's samples that carry all of the labels (`name="value"`), on a page in exposition format."""
    lines = [line for line in page.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
    return sum(float(line.rpartition(" ")[2]) for line in lines if all(label in line for label in labels))


def events(text: str) -> list[Any]:
    """The payloads of a stream that must be complete; [DONE] is taken off."""
    blocks = text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""], f"the stream does not end as it should: {blocks[-2:]}"
    assert all(block.startswith("data: ") for block in blocks[:-1])
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


def delta_of(choice: dict[str, Any]) -> str:
    """The text of a chunk's choice, of either endpoint."""
    text: str = choice["text"] if "text" in choice else choice["delta"].get("content", "")
    return text


def ask(http: httpx.Client, body: dict[str, Any]) -> httpx.Response:
    """Sends a chat if the body has messages, else a completion."""
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    return http.post(path, json=body)
