"""The stages of a request before it runs. If one fails, a field does not reach the engine, or a default is wrong."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.request import EditSetting, SamplingParams
from server.api.call import validate
from server.api.chat.prepare import prepare as prepare_chat
from server.api.chat.request import ChatRequest
from server.api.completions.prepare import prepare as prepare_completion
from server.api.completions.request import CompletionRequest
from server.api.prepare import Limits, derive_seed, effective_seed
from server.api.requests import parse_generation
from server.generation.job import Job
from server.http.errors import BadRequest
from server.text.served_model import ServedModel
from tests.fakes import INFO, builtin_tokenizer

pytestmark = pytest.mark.anyio

LIMITS = Limits(max_choices=8, clip_max_tokens=True)


@pytest.fixture(scope="module")
def model() -> ServedModel:
    return ServedModel("builtin", INFO, builtin_tokenizer())


async def completion(model: ServedModel, **fields: Any) -> Job:
    call = validate(parse_generation(CompletionRequest, {"prompt": "Hello", **fields}), model)
    return await prepare_completion(call, model, LIMITS)


async def test_every_sampling_parameter_reaches_the_engine(model: ServedModel) -> None:
    """A parameter that is validated and then lost is worse than one that is refused."""
    asked: dict[str, Any] = {
        "temperature": 0.5, "top_k": 7, "top_p": 0.9, "min_p": 0.1, "seed": 11, "presence_penalty": 0.2,
        "frequency_penalty": 0.3, "repetition_penalty": 1.1, "logit_bias": {"9": 2}, "min_tokens": 3, "logprobs": 4,
        "logprob_token_ids": [9, 5],
    }  # fmt: skip
    # `bad_words` are banned sequences, with allowed tokens in tests/clients/parameters.
    assert set(asked) | {"allowed_token_ids", "banned_sequences"} == set(SamplingParams.__struct_fields__)
    job = await completion(model, **asked)
    expected = SamplingParams(**{**asked, "logit_bias": {9: 2.0}, "logprob_token_ids": (9, 5)})
    assert job.choices[0].request.sampling == expected


@pytest.mark.parametrize("seed", [-(2**63), -2, 2**53, 2**63 - 1, 2**64 - 1])
async def test_any_64_bit_seed_is_mapped_to_one_that_can_be_sent_back(model: ServedModel, seed: int) -> None:
    """Clients draw seeds of 64 bits; the one that the answer tells must give the same text again."""
    told = (await completion(model, seed=seed)).seed
    assert 0 <= told < 2**53
    assert told == (await completion(model, seed=seed)).seed == (await completion(model, seed=told)).seed
    assert effective_seed(seed) != effective_seed(seed ^ 1)


async def test_the_seed_minus_one_is_none(model: ServedModel) -> None:
    assert (await completion(model, seed=-1)).seed != (await completion(model, seed=-1)).seed


async def test_choices_have_seeds_of_their_own_and_ids_in_order(model: ServedModel) -> None:
    job = await completion(model, prompt=["a", "b"], n=2, seed=5)
    second = derive_seed(5, "prompt", 1)
    assert [choice.request.sampling.seed for choice in job.choices] == [
        5, derive_seed(5, "choice", 1), second, derive_seed(second, "choice", 1),
    ]  # fmt: skip
    assert [choice.prompt_index for choice in job.choices] == [0, 0, 1, 1]
    assert [choice.request.request_id for choice in job.choices] == [f"{job.id}-{i}" for i in range(4)]
    assert job.first_choices == [0, 2]


EDITS = (EditSetting("quality", 0.7, 0.5), EditSetting("speed", 0.5, 0.0), EditSetting("off", 0.95, None))
EDITOR = ServedModel(
    "m", msgspec.structs.replace(INFO, edit_settings=EDITS, default_threshold=0.7), builtin_tokenizer()
)
FORM = {"response_format": {"type": "json_object"}}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (0.7, 0.5, 16)),
        ({"editing": "speed"}, (0.5, 0.0, 16)),
        ({"editing": "off"}, (0.95, None, 16)),
        ({"threshold": 0.8}, (0.8, 0.5, 16)),
        ({"edit_threshold": 1}, (0.7, 1.0, 16)),
        ({"editing": "speed", "threshold": None, "max_post_steps": 0}, (None, 0.0, 0)),
        (FORM, (0.95, None, 16)),
        ({**FORM, "editing": "off", "threshold": 0.6}, (0.6, None, 16)),
    ],
)
async def test_a_setting_of_editing_gives_what_was_not_sent(fields: dict[str, Any], expected: tuple[Any, ...]) -> None:
    """A user would get other thresholds than the ones that were published under the name."""
    job = await completion(EDITOR, decoding="diffusion", **fields)
    decoding = job.choices[0].request.decoding
    assert (decoding.threshold, decoding.edit_threshold, decoding.max_post_steps) == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"editing": "fast"}, "editing"),
        ({"edit_threshold": 1.5}, "edit_threshold"),
        ({"max_post_steps": 1025}, "max_post_steps"),
        ({"editing": "off", "edit_threshold": 0.5}, "edit_threshold"),
        ({"editing": "off", "max_post_steps": 5}, "max_post_steps"),
        ({"max_denoising_steps": 4}, "max_denoising_steps"),
        ({**FORM, "editing": "speed"}, "response_format"),
        ({**FORM, "edit_threshold": 0.5}, "response_format"),
    ],
)
async def test_what_editing_cannot_do_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    """A form that is asked for together with edits would not hold."""
    with pytest.raises(BadRequest) as refused:
        await completion(EDITOR, decoding="diffusion", **fields)
    assert refused.value.param == param


async def test_a_chat_may_take_the_rest_of_the_context(model: ServedModel) -> None:
    data = {"messages": [{"role": "user", "content": "Hello"}]}
    job = await prepare_chat(validate(parse_generation(ChatRequest, data), model), model, LIMITS)
    request = job.choices[0].request
    assert len(request.prompt_token_ids) + request.max_tokens == INFO.max_model_len
    assert job.id.startswith("chatcmpl-")


async def test_a_gap_is_told_as_diffusion(model: ServedModel) -> None:
    """Whatever mode fills it inside the engine: clients know `suffix` as diffusion."""
    job = await completion(model, suffix=" the end", max_tokens=4)
    assert job.decoding == "diffusion"
    assert job.choices[0].prompt_tokens > len(job.choices[0].request.prompt_token_ids)


async def test_a_request_that_is_not_streamed_has_no_stream_form(model: ServedModel) -> None:
    assert (await completion(model)).stream is None
    streamed = (await completion(model, stream=True, stream_options={"include_usage": True})).stream
    assert streamed is not None
    assert (streamed.include_usage, streamed.include_drafts) == (True, False)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"threshold": 0.5}, "threshold"),
        ({"threshold": None}, "threshold"),
        ({"decoding": "ar", "block_length": 4}, "block_length"),
        ({"suffix": "x", "max_tokens": 4, "response_format": {"type": "json_object"}}, "response_format"),
        ({"suffix": "x", "max_tokens": 4, "structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"n": 9}, "n"),
        ({"prompt": ["a"] * 9}, "prompt"),
        ({"suffix": "x", "stop_token_ids": [9]}, "stop_token_ids"),
        ({"decoding": "diffusion", "block_length": 4, "max_denoising_steps": 5}, "max_denoising_steps"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(model: ServedModel, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        await completion(model, **fields)
    assert refused.value.param == param
