"""`return_token_ids`, `return_tokens_as_token_ids` and `unmasking_trace`.

If they fail, training learns from tokens that nobody generated, or from steps that chose others.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest

from engine.events import Finished, GenerationEvent, PromptScored, TokenLogprob, TokensSettled, TokenUnmasking
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


WANTED = {"unmasking_trace": True, "decoding": "diffusion", "max_tokens": 100}


def unmasking(request: Request) -> Iterator[GenerationEvent]:
    """An engine that unmasks the n-th token in step n with confidence 1 / n; the end token in step 99."""
    count = 0
    for event in saying()(request):
        if isinstance(event, TokensSettled) and request.trace_unmasking:
            ends = range(count + 1, count + 1 + len(event.token_ids))
            count += len(event.token_ids)
            yield msgspec.structs.replace(event, unmasking=[TokenUnmasking(n // 8, n, 1 / n) for n in ends])
        elif isinstance(event, Finished) and request.trace_unmasking:
            yield msgspec.structs.replace(event, stop_unmasking=TokenUnmasking(9, 99, None))
        else:
            yield event


@pytest.fixture
async def traced(serve: ApiFactory) -> AsyncIterator[Api]:
    """An application whose engine tells how it unmasked."""
    async with serve(FakeEngine(unmasking)) as api:
        yield api


def check_trace(told: list[dict[str, object]]) -> None:
    ids = encode(TEXT)
    assert [entry["token_id"] for entry in told] == [*ids, END]
    assert [entry["step"] for entry in told] == [*range(1, len(ids) + 1), 99]
    assert [entry["confidence"] for entry in told] == [*(1 / n for n in range(1, len(ids) + 1)), None]
    assert told[9]["block"] == 1
    assert "".join(str(entry["token"]) for entry in told[:-1]).strip() == TEXT.strip()


async def test_whole_answers_tell_how_every_token_was_unmasked(traced: Api) -> None:
    for send in (traced.complete, traced.chat):
        [choice] = (await send(**WANTED)).json()["choices"]
        check_trace(choice["unmasking"])


async def test_streams_tell_of_unmasking_once(traced: Api) -> None:
    for send in (traced.complete, traced.chat):
        chunks = [chunk for chunk in events_of(await send(**WANTED, stream=True)) if chunk != "[DONE]"]
        check_trace([entry for chunk in chunks for choice in chunk["choices"] for entry in choice.get("unmasking", [])])


@pytest.mark.parametrize("stop", ["owl", "Emma", "."])
async def test_a_stop_string_ends_the_trace_too(traced: Api, stop: str) -> None:
    answer = (await traced.complete(**WANTED, stop=stop)).json()
    [choice] = answer["choices"]
    assert len(choice["unmasking"]) == answer["usage"]["completion_tokens"] < len(encode(TEXT))


async def test_nobody_is_told_of_steps_who_did_not_ask(traced: Api) -> None:
    for send in (traced.complete, traced.chat):
        assert "unmasking" not in (await send(decoding="diffusion")).text
        assert "unmasking" not in (await send(decoding="diffusion", stream=True)).text


async def test_where_nothing_is_unmasked_it_is_refused(traced: Api) -> None:
    for fields in ({"decoding": "ar"}, {"decoding": "auto"}, {}):
        refused = await traced.complete(unmasking_trace=True, **fields)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "unmasking_trace")
    mixed = await traced.complete(**WANTED, stream=True, diffusing=True)
    assert mixed.json()["error"]["param"] == "unmasking_trace"
