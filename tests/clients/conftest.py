"""A real server process with the built-in model, and the clients that people bring."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest

from server.child_server import MODULE
from tests.server.processes import server as start_server

KEY = "test-key"
MODES = ("ar", "speculative", "auto", "diffusion")

QUESTION = "Add 87 and 25."
TALE = "Tell me a story about an owl and a coin."
SUM = f"<|user|>{QUESTION}<|assistant|>"
STORY = f"<|user|>{TALE}<|assistant|>"
"""The same in the built-in model's chat format, for /v1/completions."""

FLAGS = ("--threads", "1", "--calibration-seconds", "0", "--log-level", "warning", "--api-keys", KEY)


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """One server for all client tests. It wants a key, as servers do."""
    with start_server([*MODULE], *FLAGS) as process:
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
