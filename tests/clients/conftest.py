"""A real server process with the built-in model, and the clients that people bring."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.server.processes import server as start_server

ROOT = Path(__file__).parent.parent.parent
KEY = "test-key"
MODES = ("ar", "speculative", "auto", "diffusion")

QUESTION = "Add 87 and 25."
TALE = "Tell me a story about an owl and a coin."
SUM = f"<|user|>{QUESTION}<|assistant|>"
STORY = f"<|user|>{TALE}<|assistant|>"
"""The same in the built-in model's chat format, for /v1/completions."""

FLAGS = ("--threads", "1", "--calibration-seconds", "0", "--log-level", "warning", "--api-keys", KEY)


def plain_environment() -> dict[str, str]:
    """This process's environment without what would configure a client, point it elsewhere or size its terminal."""
    unwanted = ("LIGHTCONE_", "OPENAI_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "COLUMNS", "LINES", "NO_COLOR")
    return {name: value for name, value in os.environ.items() if not name.upper().startswith(unwanted)}


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """One server for all client tests. It wants a key, as servers do."""
    with start_server(["server", "serve"], *FLAGS) as process:
        yield process.url


@pytest.fixture(scope="session")
def http(url: str) -> Iterator[httpx.Client]:
    """A plain HTTP client of it."""
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture(scope="session")
def sdk(url: str) -> Iterator[openai.OpenAI]:
    """The OpenAI SDK as people set it up: a base URL and a key."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


def ask(http: httpx.Client, body: dict[str, Any]) -> httpx.Response:
    """Sends a chat if the body has messages, else a completion."""
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    return http.post(path, json=body)


def events(text: str) -> list[Any]:
    """The payloads of a stream that must be complete; [DONE] is taken off."""
    blocks = text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""], f"the stream does not end as it should: {blocks[-2:]}"
    assert all(block.startswith("data: ") for block in blocks[:-1])
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


def delta_of(choice: dict[str, Any]) -> str:
    """The text a chunk's choice carries, of either endpoint."""
    text: str = choice["text"] if "text" in choice else choice["delta"].get("content", "")
    return text
