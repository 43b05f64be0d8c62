"""A real server of models that see the whole text. If one fails, their users get 500s, guesses, or cut answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.child_server import MODULE
from tests.http_helpers import ask, events
from tests.reference.bidirectional.checkpoints import dream_config, llada_config, write_whole_checkpoint
from tests.reference.grammars import write_tokenizer
from tests.server.processes import server as start_server

FLAGS = ("--threads", "1", "--calibration-seconds", "0", "--max-batch-tokens", "384", "--max-infill-window", "64")
FLAGS += ("--served-model-name", "m", "--kv-cache-tokens", "2048")
PROMPT = [20, 30, 40, 50]


@pytest.fixture(scope="module")
def llada(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A tiny LLaDA, exact."""
    directory = write_whole_checkpoint(tmp_path_factory.mktemp("llada"), llada_config())
    yield from client_of(directory)


@pytest.fixture(scope="module")
def dream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A tiny Dream with the dual cache; the start-up line says so."""
    directory = write_whole_checkpoint(
        tmp_path_factory.mktemp("dream"), dream_config(), generation={"alg": "entropy", "eos_token_id": 2}
    )
    yield from client_of(directory, "--context-cache", "dual")


def client_of(directory: Path, *flags: str) -> Iterator[httpx.Client]:
    write_tokenizer(directory / "tokenizer.json")
    with (
        start_server([*MODULE], "--model", str(directory), *FLAGS, *flags) as process,
        httpx.Client(base_url=process.url, timeout=60, trust_env=False) as client,
    ):
        [line] = process.log_lines("model loaded")
        assert line["context_cache"] == ("dual" if flags else "none")
        yield client


def answer(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = ask(client, {"prompt": PROMPT, "temperature": 0, "ignore_eos": True} | fields)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def refusal(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = ask(client, {"prompt": PROMPT, "temperature": 0} | fields)
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


def test_the_models_facts_tell_its_defaults(llada: httpx.Client, dream: httpx.Client) -> None:
    (facts,) = llada.get("/v1/models").json()["data"][:1]
    assert (facts["decoding"], facts["decodings"], facts["block_length"]) == ("diffusion", ["diffusion"], 32)
    assert (facts["threshold"], facts["remaskings"]) == (None, ["low_confidence", "random"])
    assert facts["context_cache"] == "none"
    (facts,) = dream.get("/v1/models").json()["data"][:1]
    assert (facts["block_length"], facts["context_cache"]) == (0, "dual")
    assert facts["remaskings"] == ["entropy", "origin", "maskgit_plus", "topk_margin"]


def test_an_answer_takes_whole_blocks_and_is_cut(llada: httpx.Client) -> None:
    """The length is an input: it is rounded up for the model, and the answer is cut to what was asked for."""
    body = answer(llada, max_tokens=40)
    assert body["usage"]["completion_tokens"] == 40
    assert 40 <= body["usage"]["diffusion"]["passes"] <= 64, "a token a pass, as published"
    whole = answer(llada, max_tokens=64)["choices"][0]["text"]
    assert whole.startswith(body["choices"][0]["text"])


def test_without_max_tokens_an_answer_has_a_documented_length(llada: httpx.Client, dream: httpx.Client) -> None:
    assert answer(llada, threshold=0.01)["usage"]["completion_tokens"] == 256
    assert answer(dream, threshold=0.01)["usage"]["completion_tokens"] == 256
    # 384 tokens of a pass less a prompt of 200, in blocks of 32
    assert answer(llada, prompt=PROMPT * 50, threshold=0.01)["usage"]["completion_tokens"] == 160


def test_a_threshold_chooses_an_order_by_confidence(dream: httpx.Client) -> None:
    """Dream's own order here is by entropy, for which a threshold means nothing."""
    fast = answer(dream, max_tokens=32, threshold=0.01)
    assert fast == fast | {"choices": answer(dream, max_tokens=32, threshold=0.01, remasking="maskgit_plus")["choices"]}
    assert fast["usage"]["diffusion"]["passes"] == 2
    error = refusal(dream, max_tokens=32, threshold=0.5, remasking="entropy")
    assert (error["param"], error["code"]) == ("threshold", "unsupported_parameter")
    assert "remasking 'entropy'" in error["message"]


def test_orders_and_block_lengths_change_the_answer(llada: httpx.Client, dream: httpx.Client) -> None:
    texts = {answer(dream, max_tokens=24, remasking=name)["choices"][0]["text"] for name in ("entropy", "origin")}
    assert len(texts) == 2
    texts = {answer(llada, max_tokens=32, block_length=n)["choices"][0]["text"] for n in (2, 8, 32)}
    assert len(texts) > 1


def test_a_gap_is_filled_in_sight_of_what_follows(llada: httpx.Client, dream: httpx.Client) -> None:
    for client in (llada, dream):
        texts = [answer(client, max_tokens=9, suffix=text)["choices"][0]["text"] for text in ("ab", "yes", "ab")]
        assert texts[0] == texts[2] != texts[1]
        assert answer(client, max_tokens=9, suffix="ab")["usage"]["completion_tokens"] == 9


def test_a_stream_carries_exactly_the_answer(llada: httpx.Client, dream: httpx.Client) -> None:
    for client in (llada, dream):
        fields = {"prompt": PROMPT, "max_tokens": 48, "temperature": 0, "ignore_eos": True, "block_length": 8}
        whole = ask(client, fields).json()["choices"][0]["text"]
        chunks = events(ask(client, fields | {"stream": True}).text)
        pieces = [choice["text"] for chunk in chunks for choice in chunk["choices"]]
        assert "".join(pieces) == whole
        assert sum(bool(piece) for piece in pieces) > 1, "text streams by blocks; slow readers get several at once"


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"decoding": "ar"}, "decoding", ["llada", "'ar'"]),
        ({"decoding": "speculative"}, "decoding", ["llada", "'speculative'"]),
        ({"decoding": "auto"}, "decoding", ["llada", "'auto'"]),
        ({"remasking": "entropy"}, "remasking", ["llada", "'entropy'", "low_confidence, random"]),
        ({"remasking": "random", "threshold": 0.5}, "threshold", ["'random'"]),
        ({"echo": True, "logprobs": 1}, "echo", ["'echo'", "'logprobs'", "'diffusion'"]),
        ({"max_denoising_steps": 9, "block_length": 8}, "max_denoising_steps", ["(9)", "(8)"]),
        ({"block_length": 1}, "block_length", ["between 2 and"]),
        ({"suffix": "ab", "max_tokens": 400}, "max_tokens", ["384", "max_batch_tokens"]),
    ],
)
def test_what_cannot_work_is_a_400_that_names_both(
    llada: httpx.Client, fields: dict[str, Any], param: str, words: list[str]
) -> None:
    error = refusal(llada, **fields)
    assert error["param"] == param
    for word in words:
        assert word in error["message"]


def test_a_text_that_no_pass_holds_is_a_400_with_both_numbers(llada: httpx.Client) -> None:
    error = refusal(llada, prompt=PROMPT * 90, max_tokens=20)  # 360 and a block of 32
    assert error["code"] == "context_length_exceeded"
    assert "392 tokens" in error["message"]
    assert "384 tokens (max_batch_tokens)" in error["message"]
