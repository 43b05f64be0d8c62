"""POST /v1/completions, answers that are not streamed."""

from __future__ import annotations

from typing import Any

import pytest

from server.api.prepare import derive_seed
from tests.fakes import TEXT, FakeEngine, encode, saying
from tests.server.conftest import Api, ApiFactory

pytestmark = pytest.mark.anyio

BOS = 1


async def test_the_answer_has_openais_shape(api: Api) -> None:
    """SDKs parse every field of it."""
    response = await api.complete(max_tokens=100, temperature=0, seed=7)
    assert response.status_code == 200
    answer = response.json()
    assert answer["id"].startswith("cmpl-")
    assert answer["object"] == "text_completion"
    assert answer["model"] == "builtin"
    assert answer["choices"] == [
        {"index": 0, "text": TEXT, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    ]
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] == len(encode(TEXT))
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
    assert set(usage["diffusion"]) == {
        "decoding", "passes", "denoising_steps", "tokens_per_pass", "draft_tokens", "accepted_draft_tokens",
        "edited_tokens", "seed",
    }  # fmt: skip
    assert (usage["diffusion"]["decoding"], usage["diffusion"]["seed"]) == ("auto", 7)
    assert usage["diffusion"]["tokens_per_pass"] == round(usage["completion_tokens"] / usage["diffusion"]["passes"], 2)


async def test_the_defaults_are_openais(api: Api) -> None:
    answer = (await api.complete()).json()
    assert answer["usage"]["completion_tokens"] == 16
    assert answer["choices"][0]["finish_reason"] == "length"
    request = api.engine.requests[0]
    assert (request.sampling.temperature, request.sampling.top_p, request.max_tokens) == (1.0, 1.0, 16)
    assert request.sampling.seed == answer["usage"]["diffusion"]["seed"] < 2**53


async def test_every_field_reaches_the_engine(api: Api) -> None:
    """A parameter that is taken and not passed on is a lie."""
    body: dict[str, Any] = {
        "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "seed": 3, "presence_penalty": 0.5,
        "frequency_penalty": -0.5, "repetition_penalty": 1.25, "logit_bias": {"17": 5, "9": -100}, "min_tokens": 2,
        "logprobs": 2, "stop_token_ids": [33], "ignore_eos": True, "priority": -4, "cache_salt": "s",
        "decoding": "diffusion", "block_length": 16, "threshold": 0.75, "max_denoising_steps": 5,
    }  # fmt: skip
    assert (await api.complete(**body)).status_code == 200
    request = api.engine.requests[0]
    sampling, decoding = request.sampling, request.decoding
    for name in ("temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty",
                 "repetition_penalty", "min_tokens", "logprobs"):  # fmt: skip
        assert getattr(sampling, name) == body[name], name
    assert decoding.mode == body["decoding"]
    for name in ("block_length", "threshold", "max_denoising_steps"):
        assert getattr(decoding, name) == body[name], name
    assert sampling.logit_bias == {17: 5.0, 9: -100.0}
    assert request.stop_token_ids == (33,)
    assert (request.ignore_eos, request.priority, request.cache_salt, request.max_tokens) == (True, -4, "s", 9)


async def test_a_null_threshold_asks_for_an_even_schedule(api: Api) -> None:
    await api.complete(decoding="diffusion", threshold=None, max_denoising_steps=4)
    await api.complete(decoding="diffusion")
    assert [request.decoding.threshold for request in api.engine.requests] == [None, 0.9]


@pytest.mark.parametrize("prompt", ["Hi", ["Hi"], [72, 73], [[72, 73]]])
async def test_a_prompt_may_have_any_of_openais_forms(api: Api, prompt: Any) -> None:
    response = await api.complete(prompt=prompt)
    assert response.status_code == 200
    expected = [BOS, *encode("Hi")] if "Hi" in prompt else [72, 73]
    assert api.engine.requests[0].prompt_token_ids == expected


async def test_batches_and_n_number_their_choices_prompt_by_prompt(api: Api) -> None:
    answer = (await api.complete(prompt=["a", "bb"], n=3, seed=11)).json()
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    prompts = [request.prompt_token_ids for request in api.engine.requests]
    assert prompts == [[BOS, *encode("a")]] * 3 + [[BOS, *encode("bb")]] * 3
    assert answer["usage"]["prompt_tokens"] == len(prompts[0]) + len(prompts[3])
    assert answer["usage"]["completion_tokens"] == 6 * 16


async def test_a_prompt_of_a_batch_equals_itself_sent_alone(api: Api) -> None:
    """With the documented seed, so that a batched evaluation can be reproduced one by one."""
    await api.complete(prompt=["a", "b", "c"], n=2, seed=11)
    batched = [request.sampling.seed for request in api.engine.requests]
    api.engine.requests.clear()
    for index, prompt in enumerate("abc"):
        await api.complete(prompt=prompt, n=2, seed=derive_seed(11, "prompt", index))
    assert [request.sampling.seed for request in api.engine.requests] == batched
    assert len(set(batched)) == 6
    assert batched[0] == 11
    assert all(0 <= seed < 2**53 for seed in batched)


async def test_echo_puts_the_prompt_in_front(api: Api) -> None:
    answer = (await api.complete(prompt="Tell me: ", echo=True, max_tokens=4)).json()
    assert answer["choices"][0]["text"].startswith("Tell me: Once")
    answer = (await api.complete(prompt=encode("Ids: "), echo=True, max_tokens=4)).json()
    assert answer["choices"][0]["text"].startswith("Ids: Once")


async def test_stop_strings_end_the_text_and_the_work(api: Api) -> None:
    answer = (await api.complete(stop=["gentle", "zzz"], max_tokens=100)).json()
    assert answer["choices"][0]["text"] == TEXT[: TEXT.index("gentle")]
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] < len(encode(TEXT))
    assert api.engine.aborted == [api.engine.requests[0].request_id]


async def test_sixteen_stop_strings_are_allowed(api: Api) -> None:
    assert (await api.complete(stop=[f"x{n}" for n in range(16)])).status_code == 200
    response = await api.complete(stop=[f"x{n}" for n in range(17)])
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "stop"


async def test_log_probabilities_line_up_with_the_text(api: Api) -> None:
    answer = (await api.complete(logprobs=2, max_tokens=12)).json()["choices"][0]
    scores, text = answer["logprobs"], answer["text"]
    assert "".join(scores["tokens"]) == text
    assert scores["text_offset"] == [text.index(token, offset) for token, offset in
                                     zip(scores["tokens"], scores["text_offset"], strict=True)]  # fmt: skip
    assert len(scores["token_logprobs"]) == len(scores["top_logprobs"]) == 12
    assert all(len(top) <= 2 for top in scores["top_logprobs"])


async def test_log_probabilities_stop_where_the_text_stops(api: Api) -> None:
    answer = (await api.complete(logprobs=0, max_tokens=100, stop="gentle")).json()["choices"][0]
    assert "".join(answer["logprobs"]["tokens"][:-1]) + " " == answer["text"]
    assert answer["logprobs"]["tokens"][-1] == " gentle", "the token in which the text ends belongs to it"
    assert [list(top) for top in answer["logprobs"]["top_logprobs"]] == [[t] for t in answer["logprobs"]["tokens"]]


async def test_suffix_reaches_the_engine_as_tokens_without_bos(api: Api) -> None:
    answer = (await api.complete(prompt="def f():", suffix="return x", max_tokens=8)).json()
    request = api.engine.requests[0]
    assert request.suffix_token_ids == encode("return x")
    assert answer["usage"]["prompt_tokens"] == len(request.prompt_token_ids) + len(encode("return x"))


@pytest.mark.parametrize("decoding", [None, "auto", "diffusion"])
async def test_a_suffix_is_filled_in_by_the_same_mode_whatever_was_asked_for(api: Api, decoding: str | None) -> None:
    """Clients that leave out `decoding` would get another answer than those that name it."""
    answer = (await api.complete(suffix="return x", max_tokens=8, decoding=decoding)).json()
    assert api.engine.requests[0].decoding.mode == "infill"
    assert answer["usage"]["diffusion"]["decoding"] == "diffusion"


async def test_a_suffix_may_be_tuned_as_diffusion_is(api: Api) -> None:
    response = await api.complete(suffix="x", max_tokens=8, threshold=0.5, max_denoising_steps=8)
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("alias", "decoding", "expected"),
    [
        ("builtin", None, "auto"),
        ("builtin:ar", None, "ar"),
        ("builtin:diffusion", "diffusion", "diffusion"),
        (None, "speculative", "speculative"),
    ],
)
async def test_an_alias_chooses_the_mode(api: Api, alias: str | None, decoding: str | None, expected: str) -> None:
    """For clients that can set nothing but the model."""
    answer = (await api.complete(model=alias, decoding=decoding)).json()
    assert answer["usage"]["diffusion"]["decoding"] == api.engine.requests[0].decoding.mode == expected
    assert answer["model"] == (alias or "builtin")


async def test_an_engine_error_is_a_500_and_ends_the_other_choices(serve: ApiFactory) -> None:
    async with serve(FakeEngine(saying(ending="error"))) as api:
        response = await api.complete(max_tokens=100, n=2)
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "generation_failed"
    assert response.headers["x-request-id"]


async def test_a_request_that_takes_too_long_is_ended(serve: ApiFactory) -> None:
    from tests.fakes import hanging

    async with serve(FakeEngine(hanging), request_timeout=0.05) as api:
        response = await api.complete()
        assert response.status_code == 504, "a 503 is repeated on the next replica"
        assert response.headers["x-should-retry"] == "false"
        assert response.json()["error"]["code"] == "request_timeout"
        assert len(api.engine.in_flight) == 0
