"""The honest-parameter rule: every field works, is neutral, or is refused with a 400 that names it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from server.api.fields import UNSUPPORTED, WITHOUT_EFFECT
from tests.server.conftest import Api

pytestmark = pytest.mark.anyio


def refused(response: httpx.Response, param: str | None) -> dict[str, Any]:
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] is param is None or str(error["param"]).partition("[")[0] == param
    assert response.headers["x-should-retry"] == "false"
    assert param is None or param.split(".")[-1] in error["message"]
    return error


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1), ("temperature", 2.1), ("temperature", "1"), ("temperature", True),
        ("temperature", 1e999), ("top_p", 0), ("top_p", 1.5), ("top_k", -2), ("top_k", 1.5), ("min_p", -1),
        ("min_p", 2), ("n", 0), ("n", -1),
        ("n", 10**9), ("n", 2.5), ("n", "2"), ("n", True), ("max_tokens", 0), ("max_tokens", -5), ("max_tokens", "16"),
        ("max_tokens", 2**70), ("seed", -(2**63) - 1), ("seed", 2**64), ("seed", 1.5), ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1), ("repetition_penalty", 0), ("repetition_penalty", 1e9),
        ("repetition_penalty", 1e-50), ("logit_bias", {"x": 1}),
        ("logit_bias", {"7": 101}), ("logit_bias", {"7": "1"}), ("logit_bias", [1]), ("logit_bias", {"-1": 1}),
        ("logit_bias", {str(10**6): 1}), ("logit_bias", {str(n): 1 for n in range(2000)}), ("logprobs", 21),
        ("logprobs", -1), ("logprobs", True), ("stop", 5), ("stop", [""]), ("stop", ["x" * 300]), ("stop", [1]),
        ("stop_token_ids", ["a"]), ("stop_token_ids", [10**9]), ("stop_token_ids", list(range(200))),
        ("min_tokens", -1), ("min_tokens", 17), ("stream", "yes"), ("stream", 1), ("echo", "true"),
        ("priority", 1.5), ("cache_salt", ""), ("cache_salt", "x" * 300), ("decoding", "magic"), ("block_length", 1),
        ("block_length", 65), ("ignore_eos", 1), ("return_token_ids", "x"),
        ("prompt_logprobs", -1), ("skip_special_tokens", 1), ("add_special_tokens", "x"), ("include_drafts", 1),
        ("prompt_logprobs", 21), ("prompt_logprobs", True),
        ("allowed_token_ids", []), ("allowed_token_ids", [10**6]), ("allowed_token_ids", [-1]),
        ("allowed_token_ids", ["7"]), ("allowed_token_ids", [True]), ("allowed_token_ids", [7] * 5000),
        ("allowed_token_ids", [5]), ("bad_words", "x"), ("bad_words", [""]), ("bad_words", [7]),
        ("bad_words", ["x"] * 200), ("bad_words", ["x" * 300]), ("return_tokens_as_token_ids", 1),
        ("suffix", 5), ("diffusing", "x"), ("model", 5), ("prompt", 5),
        ("prompt", {}), ("prompt", []), ("prompt", [[]]), ("prompt", ["a", 1]), ("prompt", [1.5]), ("prompt", [True]),
        ("prompt", [-1]), ("prompt", [1643]), ("prompt", [5]), ("prompt", [7, 0]), ("prompt", [10**30]),
    ],
)  # fmt: skip
async def test_values_out_of_bounds_are_refused_by_name(api: Api, field: str, value: Any) -> None:
    if value == 1e999:
        content = b'{"prompt": "x", "temperature": 1e999}'
        headers = {"content-type": "application/json"}
        response = await api.http.post("/v1/completions", content=content, headers=headers)
    else:
        response = await api.complete(**{field: value})
    refused(response, field)
    assert not api.engine.requests


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
async def test_known_fields_that_are_not_built_are_refused_and_neutral_values_are_not(api: Api, name: str) -> None:
    """Nothing is accepted and ignored; and no client fails for sending a default."""
    entry = UNSUPPORTED[name]
    for endpoint in entry.endpoints:
        send = {
            "completions": api.complete, "chat": api.chat, "responses": api.respond, "messages": api.message,
        }[endpoint]  # fmt: skip
        for value in (None, *entry.neutral_at(endpoint)):
            assert (await send(**{name: value})).status_code == 200, (name, value)
        error = refused(await send(**{name: {"strange": "value"}}), name)
        assert error["code"] == "unsupported_parameter"


@pytest.mark.parametrize(("name", "kinds"), WITHOUT_EFFECT.items())
async def test_fields_that_cannot_change_text_are_accepted(api: Api, name: str, kinds: tuple[type, ...]) -> None:
    assert (await api.complete(**{name: kinds[0]()})).status_code == 200
    assert (await api.complete(**{name: None})).status_code == 200
    refused(await api.complete(**{name: 5}), name)


async def test_best_of_n_is_n(api: Api) -> None:
    assert (await api.complete(n=2, best_of=2)).status_code == 200
    refused(await api.complete(n=2, best_of=3), "best_of")
    refused(await api.complete(best_of=True), "best_of")


@pytest.mark.parametrize(
    ("name", "near"), [("temprature", "temperature"), ("maxTokens", "max_tokens"), ("zzzz", None), ("top-p", "top_p")]
)
async def test_unknown_fields_are_refused_with_the_nearest_name(api: Api, name: str, near: str | None) -> None:
    error = refused(await api.complete(**{name: None}), name)
    assert error["message"].startswith(f"Unknown parameter: '{name}'.")
    assert error["code"] == "unknown_parameter"
    assert (f"Did you mean '{near}'?" in error["message"]) == (near is not None)


async def test_unknown_fields_inside_are_refused_too(api: Api) -> None:
    error = refused(
        await api.complete(stream=True, stream_options={"include_usge": True}), "stream_options.include_usge"
    )
    assert "include_usage" in error["message"]


@pytest.mark.parametrize(
    ("decoding", "field", "value"),
    [
        ("ar", "block_length", 16), ("ar", "threshold", 0.9), ("auto", "threshold", 0.9), ("auto", "threshold", None),
        ("speculative", "max_denoising_steps", 4), ("ar", "max_denoising_steps", 4),
    ],
)  # fmt: skip
async def test_a_field_without_meaning_in_the_mode_is_refused(api: Api, decoding: str, field: str, value: Any) -> None:
    error = refused(await api.complete(decoding=decoding, **{field: value}), field)
    assert decoding in error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"diffusing": True}, "diffusing"),
        ({"diffusing": True, "stream": True, "stream_options": {"include_drafts": True}}, "diffusing"),
        ({"diffusing": True, "stream": True, "logprobs": 1}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 0, "logprobs": 1}, "max_tokens"),
        ({"echo": True, "suffix": "x"}, "echo"),
        ({"suffix": "x", "decoding": "ar"}, "suffix"),
        ({"suffix": "x", "max_tokens": 128}, "suffix"),
        ({"suffix": "x", "stop_token_ids": [33]}, "stop_token_ids"),
        ({"model": "builtin:ar", "decoding": "diffusion"}, "decoding"),
        ({"decoding": "diffusion", "threshold": 0}, "threshold"),
        ({"decoding": "diffusion", "threshold": 1.1}, "threshold"),
        ({"decoding": "diffusion", "max_denoising_steps": 0}, "max_denoising_steps"),
        ({"decoding": "diffusion", "max_denoising_steps": 33}, "max_denoising_steps"),
        ({"decoding": "diffusion", "unmasking": "greedy"}, "unmasking"),
        ({"decoding": "diffusion", "editing": "off"}, "editing"),
        ({"decoding": "diffusion", "edit_threshold": 0.5}, "edit_threshold"),
        ({"decoding": "diffusion", "max_post_steps": 0}, "max_post_steps"),
        ({"decoding": "diffusion", "unmasking": "cumulative", "threshold": None}, "threshold"),
        ({"decoding": "diffusion", "unmasking": "factor", "factor": 0}, "factor"),
        ({"decoding": "diffusion", "factor": 2}, "factor"),
        ({"decoding": "diffusion", "unmasking": "factor", "bound": 0.5}, "bound"),
        ({"allowed_token_ids": [2], "min_tokens": 1}, "allowed_token_ids"),
        ({"allowed_token_ids": [2], "ignore_eos": True}, "allowed_token_ids"),
        ({"allowed_token_ids": [9], "response_format": {"type": "json_object"}}, "allowed_token_ids"),
        ({"bad_words": ["x"], "response_format": {"type": "json_object"}}, "bad_words"),
        ({"bad_words": ["once upon a time"], "decoding": "diffusion"}, "bad_words"),
        ({"bad_words": ["once upon a time"], "suffix": "x"}, "bad_words"),
        ({"include_drafts": True}, "include_drafts"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"prompt_logprobs": 1, "decoding": "diffusion"}, "prompt_logprobs"),
        ({"prompt_logprobs": 1, "suffix": "x"}, "prompt_logprobs"),
        ({"n": 129}, "n"),
        ({"prompt": ["x"] * 129}, "prompt"),
        ({"prompt": ["x"] * 65, "n": 2}, "n"),
    ],
)
async def test_combinations_that_contradict_each_other_are_refused(api: Api, body: dict[str, Any], param: str) -> None:
    refused(await api.complete(**body), param)


async def test_chat_combinations_are_refused_too(api: Api) -> None:
    refused(await api.chat(top_logprobs=2), "top_logprobs")
    refused(await api.chat(diffusing=True, stream=True, logprobs=True), "logprobs")


async def test_too_long_a_request_says_the_numbers_where_it_may_not_be_cut(serve: Any) -> None:
    async with serve(clip_max_tokens=False) as api:
        error = refused(await api.complete(prompt=[9] * 200, max_tokens=57), "max_tokens")
        assert error["code"] == "context_length_exceeded"
        assert all(number in error["message"] for number in ("256", "257", "200", "57"))
        assert (await api.complete(prompt=[9] * 200, max_tokens=56)).status_code == 200


async def test_more_tokens_than_fit_become_what_fits(api: Api) -> None:
    """Clients ask for a model's largest answer whatever the prompt; peers answer them."""
    for send in (api.complete(prompt=[9] * 200, max_tokens=1000), api.chat(max_tokens=1000)):
        assert (await send).status_code == 200
    assert all(len(request.prompt_token_ids) + request.max_tokens == 256 for request in api.engine.requests)
    refused(await api.complete(prompt=[9] * 256, max_tokens=1), "prompt")
    refused(await api.complete(prompt=[9] * 200, suffix="x", max_tokens=60), "max_tokens")  # a gap has a length


async def test_the_default_length_is_never_more_than_fits(api: Api) -> None:
    """A client that sets no limit must not be told of one it never asked for."""
    assert (await api.complete(prompt=[9] * 250)).status_code == 200
    assert api.engine.requests[0].max_tokens == 6


async def test_messages_read_as_sentences(api: Api) -> None:
    """pydantic's own begin with the kind of value: "it string should match pattern" helps nobody."""
    assert "it should have at least 1 item" in refused(await api.chat(messages=[]), "messages")["message"]
    salt = refused(await api.complete(cache_salt=""), "cache_salt")
    assert "it should have at least 1 character" in salt["message"]
    assert "'x'" in refused(await api.complete(logit_bias={"x": 1}), "logit_bias")["message"]
    assert "'7'" in refused(await api.complete(logit_bias={"7": 101}), "logit_bias")["message"]


@pytest.mark.parametrize("sent", [{"n": 1.0}, {"max_tokens": 4.0}, {"model": ""}, {"top_k": 5.0}, {"seed": 3.0}])
async def test_values_that_languages_write_differently_are_the_same(api: Api, sent: dict[str, Any]) -> None:
    """JavaScript and Lua have one kind of number, and some clients send empty names."""
    assert (await api.complete(**sent)).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        {"stream": True, "stream_options": {"include_usage": None, "include_obfuscation": False}},
        {"response_format": {"type": "text", "json_schema": None}},
        {"stop": None, "logit_bias": None, "n": None, "suffix": ""},
    ],
)
async def test_null_and_neutral_values_are_not_sent_at_any_depth(api: Api, sent: dict[str, Any]) -> None:
    """Typed languages send null for every field that was not set, inside of objects too."""
    assert (await api.complete(**sent)).status_code == 200
    assert api.engine.requests[0].suffix_token_ids is None


async def test_a_prompt_is_not_scored_under_the_name_of_diffusion(api: Api) -> None:
    """The scores are causal: a multiple-choice evaluation of `:diffusion` would silently be one of `:ar`."""
    error = refused(await api.complete(model="builtin:diffusion", echo=True, logprobs=1, max_tokens=0), "echo")
    assert "diffusion" in error["message"]


async def test_text_that_cannot_fit_is_refused_before_it_is_encoded(api: Api) -> None:
    error = refused(await api.complete(prompt="x" * 1_000_000), "prompt")
    assert error["code"] == "context_length_exceeded"


async def test_an_empty_prompt_is_the_token_that_begins_a_text_or_refused(serve: Any) -> None:
    """There is nothing to continue where a model has no such token."""
    import msgspec

    from tests.fakes import INFO, FakeEngine

    async with serve() as api:
        assert (await api.complete(prompt="")).json()["usage"]["prompt_tokens"] == 1
    async with serve(FakeEngine(info=msgspec.structs.replace(INFO, bos_token_id=None))) as api:
        refused(await api.complete(prompt=""), "prompt")
        refused(await api.complete(prompt=["x", ""]), "prompt")
        assert not api.engine.requests


async def test_missing_fields_are_named(api: Api) -> None:
    refused(await api.http.post("/v1/completions", json={}), "prompt")
    refused(await api.http.post("/v1/chat/completions", json={"model": "builtin"}), "messages")


async def test_an_unknown_model_is_a_404_that_helps(api: Api) -> None:
    response = await api.complete(model="bultin")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert "builtin" in response.json()["error"]["message"]
    assert (await api.complete(model="builtin:magic")).status_code == 404


async def test_a_mode_the_model_lacks_names_model_and_mode(serve: Any) -> None:
    import msgspec

    from tests.fakes import INFO, FakeEngine

    info = msgspec.structs.replace(INFO, decodings=("diffusion",), default_decoding="diffusion", family="llada")
    async with serve(FakeEngine(info=info)) as api:
        error = refused(await api.complete(decoding="ar"), "decoding")
        assert "llada" in error["message"]
        assert (await api.complete(model="builtin:ar")).status_code == 404


@pytest.mark.parametrize("name", sorted(name for name in UNSUPPORTED if name.startswith("guided_")))
async def test_older_names_of_structured_outputs_are_refused_with_the_new_one(api: Api, name: str) -> None:
    """A client that was written for an older server learns what to send from the message alone."""
    assert "'structured_outputs'" in refused(await api.complete(**{name: "x"}), name)["message"]
