"""Structured answers of every family that decodes by diffusion: valid, and the same in any company.

If one fails, a schema holds for some checkpoints and not for others, or a loaded server gives other answers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.request import CONFIDENT
from tests.conftest import MakeEngine, engine_maker
from tests.engine.driving import Visit, ask, drive
from tests.reference.bidirectional.checkpoints import dream_config, llada_config, write_whole_checkpoint
from tests.reference.block_checkpoints import MASK_TEXTS, write_block_checkpoint
from tests.reference.grammars import CLOSING, GRAMMARS, text_of, write_tokenizer

FAMILIES: dict[str, Callable[[Path], Path]] = {
    "sdar": lambda path: write_block_checkpoint(path, "sdar"),
    "stable_diffcoder": lambda path: write_block_checkpoint(path, "stable_diffcoder"),
    "fast_dllm_v2": lambda path: write_block_checkpoint(path, "fast_dllm_v2"),
    "llada": lambda path: write_whole_checkpoint(path, llada_config()),
    "dream": lambda path: write_whole_checkpoint(path, dream_config()),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, MakeEngine]:
    """A random checkpoint of a family whose tokens have texts."""
    name = request.param
    directory = FAMILIES[name](tmp_path_factory.mktemp("models") / name)
    write_tokenizer(directory / "tokenizer.json")
    if name in MASK_TEXTS:
        path = directory / "tokenizer.json"
        path.write_text(path.read_text().replace("<|mask|>", MASK_TEXTS[name]))
    return name, engine_maker(directory, "float64")


def test_answers_are_valid_and_the_same_in_any_company(family: tuple[str, MakeEngine]) -> None:
    _, make = family
    info = make().info
    checks: dict[str, Any] = {}
    requests = []
    for i in range(16):
        grammar, is_valid = list(GRAMMARS.values())[i % 4]
        checks[f"r{i}"] = is_valid
        order = info.remaskings[i % len(info.remaskings)]
        threshold = (0.9, 0.1)[i % 2] if order in CONFIDENT else None
        requests.append(
            ask(f"r{i}", [40, 41, 42, 43, 44][: 1 + i % 5], "diffusion", grammar=grammar if i % 5 else None, seed=i,
                block_length=info.block_length, remasking=order, max_tokens=(9, 40, 60)[i % 3], temperature=i % 3 * 0.6,
                threshold=threshold, logit_bias=CLOSING if i % 2 else {})
        )  # fmt: skip
    alone = {each.request_id: drive(make(), [each])[each.request_id] for each in requests}
    ended = 0
    for request_id, answer in alone.items():
        assert answer.finished.reason in ("stop", "length"), answer.finished
        if answer.finished.reason == "stop" and int(request_id[1:]) % 5:
            ended += 1
            assert checks[request_id](text_of(answer.tokens)), text_of(answer.tokens)
    assert ended > 3, "hardly an answer came to its end: little was checked"
    tight = {"kv_cache_tokens": 96, "page_size": 4, "max_model_len": 96, "max_batch_tokens": 192}
    preempted = 0
    for pool in ({}, tight):
        together = drive(make(**pool), [Visit(each, i // 4) for i, each in enumerate(requests)])
        preempted += sum(answer.finished.stats.preemptions for answer in together.values())
        for request_id, answer in together.items():
            assert answer.outcome == alone[request_id].outcome, request_id
    assert preempted or info.sees_whole_text or info.block_length > 16, "nothing was preempted"
