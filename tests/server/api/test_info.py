"""What platforms and evaluation harnesses ask. If it fails, they take a server for dead, or build wrong prompts."""

from __future__ import annotations

import asyncio

import pytest

from tests.fakes import FakeEngine, hanging
from tests.server.conftest import Api, ApiFactory, until

pytestmark = pytest.mark.anyio


async def test_a_ping_says_what_health_says_and_needs_no_key(serve: ApiFactory) -> None:
    async with serve(api_keys=("secret",)) as api:
        ping, health = await api.http.get("/ping"), await api.http.get("/health")
        assert (ping.status_code, ping.json()) == (health.status_code, health.json()) == (200, health.json())
        assert (await api.http.get("/load")).status_code == (await api.http.get("/tokenizer_info")).status_code == 401


async def test_the_load_counts_answers_in_flight(serve: ApiFactory) -> None:
    async with serve(FakeEngine(hanging)) as api:
        assert (await api.http.get("/load")).json() == {"server_load": 0}
        task = asyncio.create_task(api.complete(n=2))
        await until(lambda: len(api.engine.requests) == 2)
        assert (await api.http.get("/load")).json() == {"server_load": 2}
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_tokenizer_is_told_as_evaluation_harnesses_read_it(api: Api) -> None:
    """Their remote tokenizer builds prompts from these texts: each must be the token it is said to be."""
    told = (await api.http.get("/tokenizer_info")).json()
    tokenizer = api.service.require_model().tokenizer
    assert told["chat_template"] == tokenizer.chat_template
    assert told["vocab_size"] == tokenizer.vocab_size
    ends = (await api.http.post("/tokenize", json={"prompt": told["eos_token"], "add_special_tokens": False})).json()
    assert ends["tokens"] == [2]
    text = (await api.http.post("/tokenize", json={"prompt": "x"})).json()["tokens"]
    assert (text[0] == 1) is told["add_bos_token"]
