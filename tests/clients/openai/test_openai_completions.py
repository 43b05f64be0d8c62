"""OpenAI's Python SDK on /v1/completions: what its users rely on."""

from __future__ import annotations

import asyncio
import math

import openai
import pytest

from tests.clients.conftest import MODES, STORY, SUM


def create(sdk: openai.OpenAI, **fields: object) -> openai.types.Completion:
    answer = sdk.completions.create(**{"model": "builtin", "prompt": SUM, "temperature": 0, "max_tokens": 80, **fields})
    assert isinstance(answer, openai.types.Completion)
    return answer


def test_an_answer_has_every_part_the_sdk_types(sdk: openai.OpenAI) -> None:
    answer = create(sdk)
    assert answer.id.startswith("cmpl-")
    assert answer.object == "text_completion"
    assert answer.model == "builtin"
    assert "112" in answer.choices[0].text
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert create(sdk, max_tokens=5).choices[0].finish_reason == "length"


@pytest.mark.parametrize("mode", MODES)
def test_a_stream_adds_up_to_the_answer_in_every_mode(sdk: openai.OpenAI, mode: str) -> None:
    fields = {"temperature": 1, "seed": 4, "extra_body": {"decoding": mode}}
    whole = create(sdk, **fields)
    text, reasons, usages = "", [], []
    for chunk in create_stream(sdk, stream_options={"include_usage": True}, **fields):
        text += "".join(choice.text for choice in chunk.choices)
        reasons += [choice.finish_reason for choice in chunk.choices if choice.finish_reason]
        usages += [chunk.usage] if chunk.usage else []
    assert text == whole.choices[0].text
    assert reasons == [whole.choices[0].finish_reason]
    assert len(usages) == 1
    assert usages[0].completion_tokens == whole.usage.completion_tokens


def create_stream(sdk: openai.OpenAI, **fields: object) -> openai.Stream[openai.types.Completion]:
    stream = sdk.completions.create(
        **{"model": "builtin", "prompt": SUM, "temperature": 0, "max_tokens": 80, "stream": True, **fields}
    )
    assert isinstance(stream, openai.Stream)
    return stream


def test_batched_prompts_and_n_come_back_in_order(sdk: openai.OpenAI) -> None:
    prompts = [SUM, STORY]
    answer = create(sdk, prompt=prompts, n=2, temperature=1, seed=9, max_tokens=20)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert len({choice.text for choice in answer.choices[2:]}) == 2, "two samples of a story are two stories"
    alone = create(sdk, prompt=SUM, temperature=1, seed=9, max_tokens=20)
    assert answer.choices[0].text == alone.choices[0].text, "the first choice is the one that n = 1 would give"
    texts = ["", "", "", ""]
    for chunk in create_stream(sdk, prompt=prompts, n=2, temperature=1, seed=9, max_tokens=20):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in answer.choices]


def test_token_ids_are_prompts_too(sdk: openai.OpenAI) -> None:
    ids = sdk.post("/../tokenize", cast_to=object, body={"prompt": SUM})["tokens"]  # type: ignore[index]
    assert create(sdk, prompt=ids).choices[0].text == create(sdk).choices[0].text
    both = create(sdk, prompt=[ids, ids], max_tokens=8).choices
    assert [choice.text for choice in both] == [create(sdk, max_tokens=8).choices[0].text] * 2


def test_stop_strings_end_the_text_before_them(sdk: openai.OpenAI) -> None:
    whole = create(sdk).choices[0].text
    for stop in (". Add", ["never said", "The answer"]):
        first = stop if isinstance(stop, str) else stop[1]
        cut = create(sdk, stop=stop).choices[0]
        assert cut.text == whole[: whole.index(first)]
        assert cut.finish_reason == "stop"
        streamed = "".join(chunk.choices[0].text for chunk in create_stream(sdk, stop=stop))
        assert streamed == cut.text


@pytest.mark.parametrize("mode", MODES)
def test_logprobs_describe_the_text(sdk: openai.OpenAI, mode: str) -> None:
    choice = create(sdk, logprobs=2, extra_body={"decoding": mode}).choices[0]
    scores = choice.logprobs
    assert scores is not None
    assert scores.tokens
    assert scores.token_logprobs
    assert scores.text_offset
    assert scores.top_logprobs
    assert "".join(scores.tokens) == choice.text
    for token, offset, logprob, top in zip(
        scores.tokens, scores.text_offset, scores.token_logprobs, scores.top_logprobs, strict=True
    ):
        assert choice.text[offset:].startswith(token)
        assert logprob is not None
        assert top is not None
        assert -20 < logprob <= 0
        assert len(top) == 2
        assert sum(math.exp(other) for other in top.values()) <= 1 + 1e-4
    assert create(sdk).choices[0].logprobs is None
    streamed = [chunk.choices[0].logprobs for chunk in create_stream(sdk, logprobs=2, extra_body={"decoding": mode})]
    assert [token for part in streamed if part is not None for token in part.tokens or []] == scores.tokens


def test_echo_and_suffix(sdk: openai.OpenAI) -> None:
    assert create(sdk, echo=True).choices[0].text == SUM + create(sdk).choices[0].text
    filled = create(sdk, prompt="Once upon a time there was", suffix=" and they were friends.", max_tokens=9)
    assert filled.choices[0].finish_reason == "length"
    assert filled.usage is not None
    assert filled.usage.completion_tokens == 9


@pytest.mark.parametrize("tokens", [1, 8])
def test_a_prompt_is_computed_once_and_then_found(sdk: openai.OpenAI, tokens: int) -> None:
    """People warm a cache by asking for a single token; usage says how much of a prompt was found."""
    prompt = (
        f"<|user|>{tokens} is the number of tokens. Tell me a story about an owl, a coin and a bell.<|assistant|>" * 2
    )

    def cached() -> int:
        usage = create(sdk, prompt=prompt, max_tokens=tokens).usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        return usage.prompt_tokens_details.cached_tokens or 0

    assert cached() == 0
    assert cached() >= 32


def test_decoding_fields_through_extra_body(sdk: openai.OpenAI) -> None:
    ar, fast = (create(sdk, extra_body={"decoding": mode}) for mode in ("ar", "speculative"))
    assert ar.choices[0].text == fast.choices[0].text, "speculation changes the speed, not the text"

    def passes(**extra: object) -> int:
        usage = create(sdk, prompt=STORY, max_tokens=40, extra_body={"decoding": "diffusion", **extra}).usage
        assert usage is not None
        return int(usage.to_dict()["diffusion"]["passes"])  # type: ignore[index]

    assert passes(threshold=0.5) < passes(threshold=0.99), "a lower threshold settles more tokens a pass"
    assert passes(threshold=None, max_denoising_steps=4) < passes(threshold=None, max_denoising_steps=32)
    assert passes(threshold=0.9, block_length=4) != passes(threshold=0.9, block_length=32)


async def _answers(url: str, key: str, count: int) -> list[str]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        many = await asyncio.gather(
            *(
                client.completions.create(model=f"builtin:{mode}", prompt=SUM, temperature=0, max_tokens=80)
                for _ in range(count)
                for mode in ("ar", "speculative", "diffusion")
            )
        )
    return [answer.choices[0].text for answer in many]


def test_the_async_client_gets_the_same_answers_side_by_side(sdk: openai.OpenAI, url: str) -> None:
    texts = asyncio.run(_answers(url, sdk.api_key, 3))
    alone = [create(sdk, model=f"builtin:{mode}").choices[0].text for mode in ("ar", "speculative", "diffusion")]
    assert texts == alone * 3


@pytest.mark.parametrize("bos", ["", "<|bos|>", "<|bos|><|bos|>"])
@pytest.mark.parametrize("text", ["Hello owl", "caf\u00e9 \u65e5\u672c", "<|user|>Add 1 and 2.<|assistant|>"])
def test_offsets_of_an_echoed_prompt_are_places_in_it(sdk: openai.OpenAI, bos: str, text: str) -> None:
    """Harnesses find a token's text there, whether BOS was spelled, once or twice, or not at all."""
    choice = sdk.completions.create(model="builtin", prompt=bos + text, echo=True, logprobs=1, max_tokens=0).choices[0]
    assert choice.text == bos + text
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.text_offset is not None
    offsets = [*logprobs.text_offset, len(choice.text)]
    assert offsets == sorted(offsets)
    assert offsets[:2] == [0, len(bos)]
    for token, start, end in zip(logprobs.tokens[1:], offsets[1:-1], offsets[2:], strict=True):
        assert token.startswith("bytes:") or token == choice.text[start:end]
