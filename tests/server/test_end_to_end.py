"""The whole server with its real engine and the built-in model, spoken to by OpenAI's own SDK."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from tests.server.processes import real

QUESTION: Any = [{"role": "user", "content": "Add 87 and 25."}]
ANSWER = "112"


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    with real("--max-queued-requests", "64") as process:
        yield process.url


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("mode", ["ar", "speculative", "auto"])
def test_every_exact_mode_gives_the_same_right_answer(client: OpenAI, mode: str) -> None:
    answer = client.chat.completions.create(
        model="builtin", messages=QUESTION, temperature=0, extra_body={"decoding": mode}
    )
    text = answer.choices[0].message.content
    assert text is not None
    assert ANSWER in text
    reference = client.chat.completions.create(model="builtin:ar", messages=QUESTION, temperature=0)
    assert text == reference.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.to_dict()["diffusion"]["decoding"] == mode  # type: ignore[index]


@pytest.mark.parametrize("mode", ["ar", "speculative", "auto", "diffusion"])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_stream_says_what_the_answer_says(client: OpenAI, mode: str, temperature: float) -> None:
    ask: dict[str, Any] = {
        "model": "builtin", "messages": QUESTION, "temperature": temperature, "seed": 5, "max_tokens": 80,
        "extra_body": {"decoding": mode},
    }  # fmt: skip
    whole = client.chat.completions.create(**ask)
    parts, usage = [], None
    for chunk in client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}):
        parts += [choice.delta.content or "" for choice in chunk.choices]
        usage = chunk.usage or usage
    assert "".join(parts) == whole.choices[0].message.content
    assert usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_diffusion_streams_more_than_one_token_a_pass(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="builtin:diffusion", messages=QUESTION, temperature=0)
    assert answer.usage is not None
    assert answer.usage.to_dict()["diffusion"]["tokens_per_pass"] > 1.5  # type: ignore[index]


def test_a_stop_string_inside_a_block_ends_text_and_work(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="builtin", messages=QUESTION, temperature=0)
    text = whole.choices[0].message.content or ""
    stop = text[20:24]
    cut = client.chat.completions.create(model="builtin", messages=QUESTION, temperature=0, stop=[stop])
    assert cut.choices[0].message.content == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_drafts_show_the_answer_taking_shape(url: str) -> None:
    body = {
        "model": "builtin:diffusion", "messages": QUESTION, "temperature": 0, "stream": True,
        "stream_options": {"include_drafts": True}, "threshold": None, "max_denoising_steps": 8,
    }  # fmt: skip
    text = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).text
    chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    drafts = [chunk["choices"][0]["draft"] for chunk in chunks if chunk["choices"][0].get("draft")]
    assert any("▒" in draft["text"] for draft in drafts)
    assert all(draft["masked"] == sum(token["text"] is None for token in draft["tokens"]) for draft in drafts)
    final = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert "▒" not in final
    assert final


def test_mercurys_form_ends_with_the_answer(url: str) -> None:
    body = {"messages": QUESTION, "temperature": 0, "stream": True, "diffusing": True, "model": "builtin:diffusion"}
    text = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).text
    chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    whole = httpx.post(
        f"{url}/v1/chat/completions", json={"messages": QUESTION, "temperature": 0, "model": "builtin:diffusion"}
    ).json()
    assert chunks[-2]["choices"][0]["delta"]["content"] == whole["choices"][0]["message"]["content"]
    assert chunks[-2]["diffusion_meta"]["diffusion_progress"] == 1.0


@pytest.mark.parametrize("mode", ["ar", "speculative", "diffusion"])
def test_log_probabilities_belong_to_the_text(client: OpenAI, mode: str) -> None:
    answer = client.chat.completions.create(
        model=f"builtin:{mode}", messages=QUESTION, temperature=0, logprobs=True, top_logprobs=3
    )
    choice = answer.choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert "".join(token.token for token in choice.logprobs.content) == choice.message.content
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 3 for token in choice.logprobs.content)


def test_completions_batches_and_seeds(client: OpenAI) -> None:
    prompts = ["<|bos|><|user|>Multiply 36 by 6.<|assistant|>", "<|bos|><|user|>Add 1 and 2.<|assistant|>"]
    ask: dict[str, Any] = {"model": "builtin", "prompt": prompts, "n": 2, "seed": 3, "max_tokens": 40}
    first, second = client.completions.create(**ask), client.completions.create(**ask)
    texts = [choice.text for choice in first.choices]
    assert texts == [choice.text for choice in second.choices]
    assert len(texts) == 4


def test_infill_fills_exactly_the_gap(client: OpenAI) -> None:
    answer = client.completions.create(
        model="builtin", prompt="<|bos|><|user|>Add 1 and 2.<|assistant|>", suffix=" The answer is 3.", max_tokens=12,
        temperature=0,
    )  # fmt: skip
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12


def test_logit_bias_and_min_tokens_do_something(client: OpenAI) -> None:
    comma = httpx.post(str(client.base_url).replace("/v1/", "/tokenize"), json={"prompt": ","}).json()["tokens"][-1]
    answer = client.chat.completions.create(
        model="builtin", messages=QUESTION, temperature=0, logit_bias={str(comma): 100}, max_tokens=8
    )
    assert answer.choices[0].message.content == "," * 8
    long = client.chat.completions.create(
        model="builtin", messages=QUESTION, temperature=0, extra_body={"min_tokens": 120}, max_tokens=128
    )
    assert long.usage is not None
    assert long.usage.completion_tokens >= 120


def test_errors_are_the_sdks_own(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="maximum context length is 1024"):
        client.completions.create(model="builtin", prompt="x" * 5000)
    with pytest.raises(NotFoundError):
        client.chat.completions.create(model="gpt-4", messages=QUESTION)


def test_models_and_metrics(client: OpenAI, url: str) -> None:
    assert next(model.id for model in client.models.list()) == "builtin"
    metrics = httpx.get(f"{url}/metrics").text
    assert 'lightcone_engine_up{model="builtin"} 1.0' in metrics
    assert "lightcone_passes_total{" in metrics


def test_a_texts_likelihood_is_what_it_was_when_it_was_written(client: OpenAI) -> None:
    """Evaluations score given texts by `echo`, `logprobs` and `max_tokens` 0; both ways must see one model."""
    prompt = "Q: What is the capital of Norway?\nA:"
    written = client.completions.create(
        model="builtin", prompt=prompt, temperature=0, max_tokens=6, logprobs=2, echo=True
    ).choices[0]
    assert written.logprobs is not None
    assert written.text.startswith(prompt + " The capital")
    scored = client.completions.create(model="builtin", prompt=written.text, max_tokens=0, logprobs=2, echo=True)
    [choice], usage = scored.choices, scored.usage
    assert usage is not None
    assert (choice.text, choice.finish_reason, usage.completion_tokens) == (written.text, "length", 0)
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == written.logprobs.tokens
    assert choice.logprobs.text_offset == written.logprobs.text_offset
    assert choice.logprobs.token_logprobs is not None
    assert written.logprobs.token_logprobs is not None
    assert choice.logprobs.token_logprobs[0] is None, "nothing comes before the first token"
    assert choice.logprobs.token_logprobs[1:] == pytest.approx(written.logprobs.token_logprobs[1:], abs=1e-3)
    texts = zip(choice.logprobs.tokens or [], choice.logprobs.text_offset or [], strict=True)
    assert all(choice.text[offset:].startswith(token) for token, offset in list(texts)[1:])


def test_echo_and_logprobs_stream_too(url: str) -> None:
    body = {
        "prompt": [[6, 30, 31], [1, 40, 41, 42]], "max_tokens": 5, "temperature": 0, "echo": True, "logprobs": 1,
        "n": 2,
    }  # fmt: skip
    whole = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()["choices"]
    streamed: list[dict[str, list[Any]]] = [{} for _ in whole]
    texts = [""] * len(whole)
    lines = httpx.post(f"{url}/v1/completions", json=body | {"stream": True}, timeout=60).text.splitlines()
    for line in lines:
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                texts[choice["index"]] += choice["text"]
                for name, values in choice["logprobs"].items():
                    streamed[choice["index"]].setdefault(name, []).extend(values)
    assert texts == [choice["text"] for choice in whole]
    for found, choice in zip(streamed, whole, strict=True):
        wanted = choice["logprobs"]
        assert (found["tokens"], found["text_offset"]) == (wanted["tokens"], wanted["text_offset"])
        numbers = [value or 0.0 for value in wanted["token_logprobs"]]  # the passes of two runs round differently
        assert [value or 0.0 for value in found["token_logprobs"]] == pytest.approx(numbers, abs=1e-3)
        assert [top and list(top) for top in found["top_logprobs"]] == [
            top and list(top) for top in wanted["top_logprobs"]
        ]
    assert [len(choice["logprobs"]["tokens"]) for choice in whole[2:]] == [9, 9]
