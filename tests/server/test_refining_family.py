"""The whole server with a random DiffusionGemma, spoken to over HTTP: canvases of random tokens, refined."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.http_helpers import events
from tests.reference.refining.checkpoints import CANVAS, GENERATION, published_config
from tests.server.processes import ServerProcess, real

FLAGS = ("--load-format", "dummy", "--kv-cache-tokens", "2048", "--max-block-length", str(CANVAS))
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Nothing but a config.json and a generation_config.json, as published but for their sizes."""
    directory: Path = tmp_path_factory.mktemp("models") / "diffusion-gemma"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(published_config(vocab_size=384)))
    (directory / "generation_config.json").write_text(json.dumps(GENERATION))
    with real("--model", str(directory), *FLAGS) as running:
        yield running


def ask(process: ServerProcess, path: str = "completions", **fields: Any) -> httpx.Response:
    body = {"max_tokens": 21, "seed": 1, **fields}
    if path == "completions":
        body.setdefault("prompt", PROMPT)
    return process.http.post(f"{process.url}/v1/{path}", json=body)


def refusal(process: ServerProcess, path: str = "completions", **fields: Any) -> dict[str, Any]:
    response = ask(process, path, **fields)
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


@pytest.mark.parametrize("fields", [{}, {"temperature": 0}, {"max_denoising_steps": 2, "max_tokens": 33}])
def test_a_stream_says_what_the_answer_says(process: ServerProcess, fields: dict[str, Any]) -> None:
    """One seed, one text; and it comes at the ends of canvases, not token by token."""
    answer = ask(process, ignore_eos=True, **fields).json()
    text, usage = answer["choices"][0]["text"], answer["usage"]
    parts = events(ask(process, stream=True, ignore_eos=True, **fields).text)
    pieces = [choice["text"] for part in parts for choice in part["choices"] if choice["text"]]
    assert "".join(pieces) == text
    canvases = -(-fields.get("max_tokens", 21) // CANVAS)
    assert len(pieces) <= canvases + 1
    assert usage["completion_tokens"] == fields.get("max_tokens", 21)
    assert usage["diffusion"]["decoding"] == "diffusion"
    assert canvases <= usage["diffusion"]["passes"] <= canvases * fields.get("max_denoising_steps", 6)


def test_drafts_come_in_both_forms(process: ServerProcess) -> None:
    """Beside the deltas, or as the whole text so far: what is not settled yet can be watched."""
    parts = events(ask(process, stream=True, stream_options={"include_drafts": True}).text)
    drafts = [choice for part in parts for choice in part["choices"] if choice.get("draft")]
    assert drafts
    whole = events(ask(process, stream=True, diffusing=True).text)
    texts = [choice["text"] for part in whole for choice in part["choices"]]
    assert len(set(texts)) > 2
    assert texts[-1] == ask(process).json()["choices"][0]["text"] or texts[-1] == ""


def test_the_model_is_shown_with_its_own_settings(process: ServerProcess) -> None:
    """A client would not know what it may ask for, or what it gets if it asks for nothing."""
    [model] = process.http.get(f"{process.url}/v1/models").json()["data"][:1]
    assert (model["decoding"], model["decodings"]) == ("diffusion", ["diffusion"])
    assert (model["block_length"], model["threshold"], model["max_denoising_steps"]) == (CANVAS, None, 6)
    assert model["remaskings"] == ["entropy_bound"]
    assert (
        ask(process, remasking="entropy_bound", block_length=CANVAS).json()["choices"] == ask(process).json()["choices"]
    )


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"decoding": "ar"}, "decoding", ["diffusion_gemma", "'ar'"]),
        ({"decoding": "speculative"}, "decoding", ["diffusion_gemma", "'speculative'"]),
        ({"decoding": "auto"}, "decoding", ["diffusion_gemma", "'auto'"]),
        ({"suffix": " the end."}, "suffix", ["diffusion_gemma"]),
        ({"threshold": 0.9}, "threshold", ["entropy_bound"]),
        ({"remasking": "low_confidence"}, "remasking", ["diffusion_gemma", "Valid values: entropy_bound"]),
        ({"unmasking": "factor"}, "unmasking", ["entropy_bound"]),
        ({"block_length": 16}, "block_length", ["diffusion_gemma"]),
        ({"max_denoising_steps": 1025}, "max_denoising_steps", ["1024"]),
        ({"max_denoising_steps": 0}, "max_denoising_steps", ["at least 1"]),
        ({"presence_penalty": 0.5}, "presence_penalty", ["diffusion_gemma"]),
        ({"frequency_penalty": 0.5}, "frequency_penalty", ["diffusion_gemma"]),
        ({"repetition_penalty": 1.5}, "repetition_penalty", ["diffusion_gemma"]),
        ({"response_format": {"type": "json_object"}}, "response_format", ["diffusion_gemma"]),
        ({"prompt_logprobs": 1}, "prompt_logprobs", []),
        ({"echo": True, "max_tokens": 0}, "echo", ["diffusion_gemma"]),
        ({"bad_words": ["w300 w301"]}, "bad_words", []),
    ],
)
def test_what_the_family_cannot_do_is_refused_by_name(
    process: ServerProcess, fields: dict[str, Any], param: str, words: list[str]
) -> None:
    error = refusal(process, **fields)
    assert error["param"] == param, error
    for word in words:
        assert word in error["message"]


def test_images_are_refused(process: ServerProcess) -> None:
    """Only the text part of the model is served: an image would be dropped in silence."""
    content = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    error = refusal(process, "chat/completions", messages=[{"role": "user", "content": content}])
    assert "image_url" in error["message"]


def test_what_works_beside_the_text(process: ServerProcess) -> None:
    """Log-probabilities of every token, biases, and tokens that alone are allowed."""
    answer = ask(process, logprobs=2, max_tokens=9, ignore_eos=True).json()["choices"][0]
    assert len(answer["logprobs"]["token_logprobs"]) == 9
    assert max(answer["logprobs"]["token_logprobs"]) <= 0
    allowed = ask(process, allowed_token_ids=[300, 301], max_tokens=9, return_token_ids=True).json()["choices"][0]
    assert set(allowed["token_ids"]) <= {300, 301}
    biased = ask(process, logit_bias={"302": 100}, max_tokens=9, return_token_ids=True).json()["choices"][0]
    assert set(biased["token_ids"]) == {302}
