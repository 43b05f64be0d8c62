"""The times of a request, beside its usage. If these fail, a client reads wrong times, or any where it should not."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes import FakeEngine, saying
from tests.server.conftest import Api, ApiFactory, events_of

pytestmark = pytest.mark.anyio

NAMES = {"queue_time_ms", "time_to_first_token_ms", "generation_time_ms", "mean_itl_ms", "tokens_per_second"}


async def metrics_told(api: Api, endpoint: str, **fields: Any) -> list[dict[str, Any] | None]:
    """What each object of an answer tells."""
    answer = await {"chat": api.chat, "completions": api.complete}[endpoint](**fields)
    objects = events_of(answer)[:-1] if fields.get("stream") else [answer.json()]
    return [one.get("metrics") for one in objects]


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
async def test_an_answer_tells_its_times_once(api: Api, endpoint: str) -> None:
    [told] = await metrics_told(api, endpoint)
    assert told is not None
    assert told.keys() == NAMES
    assert all(value >= 0 for value in told.values())
    assert told["tokens_per_second"] > 0
    *before, last = await metrics_told(api, endpoint, stream=True, stream_options={"include_usage": True})
    assert last is not None
    assert before
    assert not any(before)
    assert not any(await metrics_told(api, endpoint, stream=True)), "there is no chunk with the usage"


async def test_what_did_not_happen_has_no_time(serve: ApiFactory) -> None:
    async with serve(FakeEngine(saying(""))) as api:
        assert [set(told or ()) for told in await metrics_told(api, "chat")] == [{"queue_time_ms"}]
    async with serve() as api:
        [told] = await metrics_told(api, "chat", max_tokens=1)
        assert set(told or ()) == NAMES - {"mean_itl_ms"}


async def test_an_operator_may_keep_them(serve: ApiFactory) -> None:
    async with serve(per_request_metrics=False) as api:
        assert not any(await metrics_told(api, "chat"))
        assert not any(await metrics_told(api, "completions", stream=True, stream_options={"include_usage": True}))
