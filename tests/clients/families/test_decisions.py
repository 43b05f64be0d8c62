"""Decisions of a model without a causal head. If one fails, its probabilities are not those of its masked places."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest

from server.api.decisions_api.questions import asked
from server.api.decisions_api.request import Question
from server.child_server import MODULE
from tests.fakes import BUILTIN
from tests.reference.bidirectional.checkpoints import llada_config, write_whole_checkpoint
from tests.reference.bidirectional.model import WholeModel
from tests.server.processes import server as start_server

FLAGS = ("--threads", "1", "--calibration-seconds", "0", "--served-model-name", "m", "--kv-cache-tokens", "2048")
INPUT = "The owl has a coin."
QUESTIONS: list[dict[str, Any]] = [
    {"type": "predicate", "instructions": "The owl has a key."},
    {"type": "choice", "instructions": "Who?", "choices": [{"value": v} for v in ("owl", "owl and fox", "fox")]},
]


class Served(NamedTuple):
    """A server, and the model that it serves, computed otherwise."""

    http: httpx.Client
    reference: WholeModel


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A tiny LLaDA with the built-in model's tokenizer and chat template."""
    config = llada_config(vocab_size=1664, embedding_size=1664, eos_token_id=2, pad_token_id=2)
    directory: Path = write_whole_checkpoint(tmp_path_factory.mktemp("llada"), config)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (BUILTIN / name).exists():
            shutil.copy(BUILTIN / name, directory)
    with (
        start_server([*MODULE], "--model", str(directory), *FLAGS) as process,
        httpx.Client(base_url=process.url, timeout=60, trust_env=False) as client,
    ):
        yield Served(client, WholeModel(directory))


def likelihoods(served: Served, question: dict[str, Any], answers: list[str], *, ended: bool) -> list[float]:
    """Of each answer, token after token, with masks behind up to the longest."""
    content = f"{INPUT}\n\n{asked(Question.model_validate(question)).text}"
    body = {"messages": [{"role": "user", "content": content}]}
    prompt = served.http.post("/tokenize", json=body).json()["tokens"]
    paths = []
    for answer in answers:
        own = served.http.post("/tokenize", json={"prompt": answer, "add_special_tokens": False}).json()["tokens"]
        paths.append([*own, 2] if ended else own)
    longest = max(map(len, paths))
    found = []
    for path in paths:
        total = 0.0
        for place, token in enumerate(path):
            text = [*prompt, *path[:place], *[served.reference.mask_id] * (longest - place)]
            row = served.reference.logits(text)[len(prompt) + place]
            row[list(served.reference.banned_ids)] = -np.inf
            total += row[token] - np.logaddexp.reduce(row)
        found.append(total)
    return found


def test_answers_are_scored_at_the_masked_places(served: Served) -> None:
    answer = served.http.post("/v1/decisions", json={"input": INPUT, "questions": QUESTIONS})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["scoring"] == "masked"
    predicate, choice = body["answers"]
    yes, no = map(math.exp, likelihoods(served, QUESTIONS[0], ["yes", "no"], ended=False))
    assert predicate["probability"] == pytest.approx(yes / (yes + no), rel=1e-3)
    texts = [option["value"] for option in QUESTIONS[1]["choices"]]
    expected = [math.exp(value) for value in likelihoods(served, QUESTIONS[1], texts, ended=True)]
    given = [part["probability"] for part in choice["probabilities"]]
    assert given == pytest.approx([value / sum(expected) for value in expected], rel=1e-3)
