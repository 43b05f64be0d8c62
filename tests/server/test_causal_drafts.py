"""The whole server with a random I-DLM, which drafts by causal masks, spoken to over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.reference.block_checkpoints import block_config
from tests.reference.checkpoints import MASK
from tests.server.processes import ServerProcess, real

BODY: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 40, "seed": 3, "ignore_eos": True}


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Nothing but a config.json, as published but for its size."""
    directory: Path = tmp_path_factory.mktemp("idlm")
    (directory / "config.json").write_text(json.dumps(block_config("sdar", vocab_size=384, block_size=3)))
    flags = ("--model-family", "idlm", "--load-format", "dummy", "--mask-token-id", str(MASK))
    with real("--model", str(directory), *flags, "--kv-cache-tokens", "2048") as running:
        yield running


def ask(process: ServerProcess, **fields: Any) -> Any:
    return process.http.post(f"{process.url}/v1/completions", json=BODY | fields)


@pytest.mark.parametrize("fields", [{"temperature": 0}, {"temperature": 1.2}, {"block_length": 8, "top_p": 0.8}])
def test_every_mode_gives_the_same_text(process: ServerProcess, fields: dict[str, Any]) -> None:
    """`auto` is the default: nobody has to know of modes to get the text of `ar`."""
    plain = {name: value for name, value in fields.items() if name != "block_length"}
    answers = [ask(process, decoding="ar", **plain)]
    answers += [ask(process, decoding=mode, **fields) for mode in ("speculative", "auto")] + [ask(process, **fields)]
    assert [answer.json()["usage"]["diffusion"]["decoding"] for answer in answers] == [
        "ar",
        "speculative",
        "auto",
        "auto",
    ]
    assert len({answer.json()["choices"][0]["text"] for answer in answers}) == 1
    spent = answers[1].json()["usage"]["diffusion"]
    assert spent["draft_tokens"] > 0
    assert spent["denoising_steps"] <= spent["passes"] <= 40


def test_its_facts_are_told(process: ServerProcess) -> None:
    models = process.http.get(f"{process.url}/v1/models").json()["data"]
    assert (models[0]["decoding"], models[0]["decodings"]) == ("auto", ["ar", "speculative", "auto"])
    assert (models[0]["block_length"], models[0]["threshold"], models[0]["editings"]) == (4, None, [])
    assert [model["id"].rpartition(":")[2] for model in models[1:]] == ["ar", "speculative"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"decoding": "diffusion"}, "decoding"), ({"suffix": " the end."}, "suffix"),
        ({"editing": "speed", "decoding": "speculative"}, "editing"), ({"block_length": 1}, "block_length"),
    ],
)  # fmt: skip
def test_what_it_cannot_do_is_a_400_that_names_it(process: ServerProcess, fields: dict[str, Any], param: str) -> None:
    response = ask(process, **fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_a_prompt_is_scored(process: ServerProcess) -> None:
    """As evaluation harnesses do: it has a causal head."""
    answer = ask(process, echo=True, logprobs=1, max_tokens=0).json()
    scores = answer["choices"][0]["logprobs"]["token_logprobs"]
    assert scores[0] is None
    assert all(score < 0 for score in scores[1:])
