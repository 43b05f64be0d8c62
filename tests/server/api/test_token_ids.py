"""`return_token_ids` and `return_tokens_as_token_ids`. If they fail, training learns from tokens nobody generated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from engine.events import GenerationEvent, PromptScored, TokenLogprob
from engine.request import Request
from tests.fakes import TEXT, FakeEngine, encode, saying
from tests.server.conftest import Api, ApiFactory, events_of

pytestmark = pytest.mark.anyio

END = 2


async def test_a_completion_tells_prompt_and_answer_in_each_choice(api: Api) -> None:
    answer = (await api.complete(prompt=["Hello", "Hi there"], max_tokens=100, return_token_ids=True)).json()
    prompts = [request.prompt_token_ids for request in api.engine.requests]
    assert [choice["prompt_token_ids"] for choice in answer["choices"]] == prompts
    assert all(choice["token_ids"] == [*encode(TEXT), END] for choice in answer["choices"])


async def test_a_chat_tells_the_prompt_beside_its_choices(api: Api) -> None:
    answer = (await api.chat(max_tokens=100, return_token_ids=True)).json()
    assert answer["prompt_token_ids"] == api.engine.requests[0].prompt_token_ids
    assert answer["choices"][0]["token_ids"] == [*encode(TEXT), END]


async def test_streams_tell_every_id_once(api: Api) -> None:
    for send in (api.complete, api.chat):
        response = await send(max_tokens=100, stream=True, return_token_ids=True)
        chunks = [chunk for chunk in events_of(response) if chunk != "[DONE]"]
        ids = [token for chunk in chunks for choice in chunk["choices"] for token in choice.get("token_ids", [])]
        assert ids == [*encode(TEXT), END]
        prompts = [holder["prompt_token_ids"] for chunk in chunks for holder in (chunk, *chunk["choices"])
                   if "prompt_token_ids" in holder]  # fmt: skip
        assert prompts == [api.engine.requests[-1].prompt_token_ids]


@pytest.mark.parametrize("stop", ["owl", "Emma", "."])
async def test_a_stop_string_ends_the_ids_too(api: Api, stop: str) -> None:
    """The ids are those of the text and of the stop string: as many as the usage counts."""
    answer = (await api.complete(max_tokens=100, stop=stop, return_token_ids=True)).json()
    [choice] = answer["choices"]
    assert len(choice["token_ids"]) == answer["usage"]["completion_tokens"]
    assert choice["token_ids"] == encode(TEXT)[: len(choice["token_ids"])]


async def test_nobody_gets_ids_who_did_not_ask(api: Api) -> None:
    for send in (api.complete, api.chat):
        assert "token_ids" not in (await send()).text
        assert "token_ids" not in (await send(stream=True)).text


async def test_tokens_may_be_called_by_their_ids(api: Api) -> None:
    names = [f"token_id:{token}" for token in encode(TEXT)]
    answer = (await api.complete(max_tokens=100, logprobs=1, return_tokens_as_token_ids=True)).json()
    scores: dict[str, Any] = answer["choices"][0]["logprobs"]
    assert scores["tokens"] == names
    assert all(name in top for name, top in zip(names, scores["top_logprobs"], strict=True))
    asked = {"logprobs": True, "top_logprobs": 1, "return_tokens_as_token_ids": True}
    content = (await api.chat(max_tokens=100, **asked)).json()["choices"][0]["logprobs"]["content"]
    assert [token["token"] for token in content] == names
    assert all(token["top_logprobs"][0]["token"].startswith("token_id:") for token in content)


async def test_chunks_that_replace_each_other_tell_no_ids(api: Api) -> None:
    refused = await api.complete(stream=True, diffusing=True, return_token_ids=True)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "return_token_ids"


def scoring(request: Request) -> Iterator[GenerationEvent]:
    """An engine that scores a prompt as the engine does, in two events."""
    assert request.prompt_logprobs == 2
    ids = request.prompt_token_ids
    top = [(33, -0.25), (34, -1.0)]
    scores = [TokenLogprob(token, -0.25 if token == 33 else -7.0, top, 1 if token == 33 else 9) for token in ids[1:]]
    for part in (scores[:1], scores[1:]):
        yield PromptScored(request_id=request.request_id, logprobs=part)
    yield from saying("Yes.")(request)


async def test_both_endpoints_score_a_prompt_in_vllms_form(serve: ApiFactory) -> None:
    """Completions tell it in each choice, chats once."""
    async with serve(FakeEngine(scoring)) as api:
        whole = (await api.complete(prompt=[9, 33, 40], prompt_logprobs=2)).json()
        likely = {
            "logprob": -0.25,
            "rank": 1,
            "decoded_token": api.service.require_model().tokenizer.texts.token_text(33),
        }
        first, second, third = whole["choices"][0]["prompt_logprobs"]
        assert (first, second) == (None, {"33": likely, "34": second["34"]})
        assert list(third) == ["40", "33", "34"]
        assert (third["40"]["rank"], third["34"]["rank"]) == (9, 2)
        chat = (await api.chat(prompt_logprobs=2)).json()
        assert len(chat["prompt_logprobs"]) == len(api.engine.requests[-1].prompt_token_ids)
        assert "prompt_logprobs" not in chat["choices"][0]
