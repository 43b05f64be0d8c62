"""The whole server with a random model of each family whose context is encoded by blocks, spoken to over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.http_helpers import events
from tests.reference.block_checkpoints import block_config
from tests.reference.checkpoints import MASK
from tests.server.processes import ServerProcess, real

FLAGS = ("--load-format", "dummy", "--mask-token-id", str(MASK), "--kv-cache-tokens", "2048")
BLOCK_LENGTHS = {"sdar": 8, "stable_diffcoder": 4, "fast_dllm_v2": 32, "llada2_1": 32}
THRESHOLDS = {"sdar": 0.85, "stable_diffcoder": None, "fast_dllm_v2": 0.9, "llada2_1": 0.7}
SAID = {"sdar": ("--block-length", "8"), "llada2_1": ("--model-family", "llada2_1")}
"""What the operator has to say, since config.json does not."""
PROMPT = "Once upon a time"


class Running:
    """One family's server."""

    def __init__(self, family: str, process: ServerProcess) -> None:
        self.family, self.process = family, process

    def ask(self, **fields: Any) -> httpx.Response:
        body = {"prompt": PROMPT, "max_tokens": 21, "temperature": 0, "seed": 1, **fields}
        return self.process.http.post(f"{self.process.url}/v1/completions", json=body)

    def refusal(self, **fields: Any) -> str:
        response = self.ask(**fields)
        assert response.status_code == 400, response.text
        message: str = response.json()["error"]["message"]
        return message


@pytest.fixture(scope="module", params=sorted(BLOCK_LENGTHS))
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Nothing but a config.json, as published but for its size: SDAR's says no block length."""
    family = request.param
    directory: Path = tmp_path_factory.mktemp("models") / family
    directory.mkdir()
    overrides: dict[str, Any] = {"vocab_size": 384} | ({"block_size": ...} if family == "sdar" else {})
    config = block_config("llada2" if family == "llada2_1" else family, **overrides)
    (directory / "config.json").write_text(json.dumps(config))
    with real("--model", str(directory), *FLAGS, *SAID.get(family, ())) as process:
        yield Running(family, process)


def test_a_stream_says_what_the_answer_says(running: Running) -> None:
    for fields in ({}, {"temperature": 1.0}, {"threshold": 0.3}, {"threshold": None, "max_tokens": 33}):
        answer = running.ask(**fields).json()
        text, usage = answer["choices"][0]["text"], answer["usage"]
        parts = events(running.ask(stream=True, **fields).text)
        assert "".join(choice["text"] for part in parts for choice in part["choices"]) == text
        assert usage["diffusion"]["decoding"] == "diffusion"
        assert usage["completion_tokens"] <= fields.get("max_tokens", 21)


def test_the_model_is_shown_with_its_own_settings(running: Running) -> None:
    """A client would not know what it may ask for, or what it gets if it asks for nothing."""
    [model] = running.process.http.get(f"{running.process.url}/v1/models").json()["data"][:1]
    assert (model["decoding"], model["decodings"]) == ("diffusion", ["diffusion"])
    assert model["block_length"] == BLOCK_LENGTHS[running.family]
    assert model["threshold"] == THRESHOLDS[running.family]
    assert model["editings"] == (["quality", "speed", "off"] if running.family == "llada2_1" else [])
    assert model["remaskings"] == ["low_confidence", "sequential"][: 1 + (running.family == "sdar")]


@pytest.mark.parametrize("mode", ["ar", "speculative", "auto"])
def test_a_mode_that_needs_a_causal_head_is_refused(running: Running, mode: str) -> None:
    message = running.refusal(decoding=mode)
    assert running.family in message
    assert f"'{mode}'" in message


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"echo": True, "logprobs": 1}, ["echo", "logprobs"]),
        ({"echo": True, "max_tokens": 0}, ["cannot score a prompt", "FAMILY"]),
        ({"suffix": " the end."}, ["FAMILY", "suffix"]),
        ({"block_length": 16}, ["FAMILY", "block_length"]),
    ],
)
def test_what_the_family_cannot_do_is_refused_by_both_names(
    running: Running, fields: dict[str, Any], words: list[str]
) -> None:
    message = running.refusal(**fields)
    for word in words:
        assert (running.family if word == "FAMILY" else word) in message
    assert "'ar'" not in message, "a hint at a mode that this model does not have"


def test_a_request_may_name_the_block_length_that_the_model_has(running: Running) -> None:
    assert running.ask(block_length=BLOCK_LENGTHS[running.family]).json()["choices"] == running.ask().json()["choices"]


def test_orders_and_steps_are_those_of_the_family(running: Running) -> None:
    """A parameter that a family's loop does not have would be taken and do nothing."""
    if running.family == "sdar":
        passes = [running.ask(remasking="sequential", max_denoising_steps=steps, ignore_eos=True) for steps in (1, 8)]
        few, many = (response.json()["usage"]["diffusion"]["passes"] for response in passes)
        assert few < many
        assert "sequential" in running.refusal(remasking="sequential", threshold=0.5)
    else:
        assert running.family in running.refusal(remasking="sequential")
    if running.family == "fast_dllm_v2":
        assert "max_denoising_steps" in running.refusal(max_denoising_steps=4)
    elif running.family == "llada2_1":
        assert "'editing': 'off'" in running.refusal(max_denoising_steps=4)
        assert running.ask(max_denoising_steps=2, editing="off").status_code == 200
    else:
        assert running.ask(max_denoising_steps=2).status_code == 200


def test_edits_are_asked_for_by_name_and_counted(running: Running) -> None:
    """Nobody could tell a setting that was taken from one that was not, or what the edits cost."""
    if running.family != "llada2_1":
        for fields in ({"editing": "off"}, {"editing": "speed"}, {"edit_threshold": 0.5}, {"max_post_steps": 4}):
            message = running.refusal(**fields)
            assert running.family in message
            assert str(next(iter(fields))) in message
        assert running.ask().json()["usage"]["diffusion"]["edited_tokens"] == 0
        return
    before = running.process.metric("edited_tokens_total")
    usages = {}
    for name, thresholds in {"quality": (0.7, 0.5), "speed": (0.5, 0.0), "off": (0.95, None)}.items():
        answer = running.ask(editing=name, max_tokens=60, ignore_eos=True).json()
        usages[name] = answer["usage"]["diffusion"]
        asked = {"threshold": thresholds[0]} | (
            {"editing": name} if name == "off" else {"edit_threshold": thresholds[1]}
        )
        alike = running.ask(**asked, max_tokens=60, ignore_eos=True).json()
        assert (alike["choices"], alike["usage"]["diffusion"]) == (answer["choices"], usages[name])
    assert usages["speed"]["edited_tokens"] > usages["quality"]["edited_tokens"] >= usages["off"]["edited_tokens"] == 0
    counted = 2 * sum(usage["edited_tokens"] for usage in usages.values())
    assert running.process.metric("edited_tokens_total") - before == counted
    assert running.ask(max_tokens=60, ignore_eos=True).json()["usage"]["diffusion"] == usages["quality"], "the default"
    assert "'edit_threshold' has no meaning" in running.refusal(editing="off", edit_threshold=0.5)
    few = running.ask(editing="speed", max_post_steps=0, max_tokens=60, ignore_eos=True).json()["usage"]["diffusion"]
    assert few["denoising_steps"] < usages["speed"]["denoising_steps"]


def test_text_streams_block_by_block_and_drafts_show_the_edits(running: Running) -> None:
    """A piece of text that is given out before its block is finished might still be edited."""
    if running.family != "llada2_1":
        return
    fields: dict[str, Any] = {"prompt": [20] * 30, "max_tokens": 66, "ignore_eos": True, "editing": "speed"}
    whole = running.ask(**fields, return_token_ids=True).json()
    chunks = events(running.ask(**fields, stream=True, include_drafts=True, return_token_ids=True).text)
    pieces = [len(choice["token_ids"]) for chunk in chunks for choice in chunk["choices"] if choice.get("token_ids")]
    assert pieces == [2, 32, 32]
    assert whole["usage"]["diffusion"]["edited_tokens"] > 0
    assert any("draft" in json.dumps(chunk) for chunk in chunks)
