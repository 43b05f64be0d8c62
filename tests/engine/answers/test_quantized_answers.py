"""Modes agree on quantized weights, too: draft and verification multiply alike, or the draft alone differs.

If one fails, quantization has made `auto` give other texts than `ar`, or a narrower draft has leaked into an answer.
"""

from __future__ import annotations

from typing import Any

import pytest

from engine.batch import Phase
from engine.config import EngineConfig
from engine.engine import Engine
from tests.engine.answers.margins import Margins
from tests.engine.answers.test_builtin_answers import near_ties
from tests.engine.driving import Answer, ask, drive
from tests.reference.prompts import prompt_ids

PROMPTS = prompt_ids()[:12]


def engine_of(**options: Any) -> Engine:
    settings: dict[str, Any] = {
        "device": "cpu", "threads": 1, "calibration_seconds": 0, "kv_cache_tokens": 4096, "dtype": "float32"
    }  # fmt: skip
    return Engine.load(EngineConfig(**(settings | options)))


def answers_of(engine: Engine, mode: str, *, together: bool = True) -> dict[str, Answer]:
    asked = [
        ask(f"r{i}", prompt, mode, block_length=16, temperature=0.8 * (i % 2), seed=i, max_tokens=24)
        for i, prompt in enumerate(PROMPTS)
    ]
    if together:
        return drive(engine, asked)
    alone: dict[str, Answer] = {}
    for request in asked:
        alone |= drive(engine, [request])
    return alone


@pytest.mark.parametrize("quantization", ["int8", "int8-weights"])
def test_every_exact_mode_gives_ars_answer(quantization: str) -> None:
    engine = engine_of(quantization=quantization)
    assert engine.info.quantization == engine.info.storage == quantization
    margins = Margins(engine)
    wanted = answers_of(engine, "ar")
    accepted = 0
    for mode in ("speculative", "auto"):
        given = answers_of(engine_of(quantization=quantization), mode)
        asked = [ask(name, [0]) for name in given]
        # Weight-only products round each activation to bfloat16: near ties are wider by as much.
        if quantization == "int8":
            assert near_ties(asked, given, wanted, margins) <= 1
        else:
            assert sum(given[name].tokens != wanted[name].tokens for name in given) <= 1
        accepted += sum(answer.finished.stats.accepted_draft_tokens for answer in given.values())
    assert accepted > 100, "nothing was speculated"


def test_answers_at_8_bits_do_not_depend_on_company() -> None:
    together = answers_of(engine_of(quantization="int8"), "speculative")
    alone = answers_of(engine_of(quantization="int8"), "speculative", together=False)
    assert sum(alone[name].tokens != together[name].tokens for name in alone) <= 1


def test_a_narrower_draft_changes_no_answer() -> None:
    """It drafts with other weights than it verifies with: only how much is accepted may differ."""
    plain = engine_of()
    margins = Margins(plain)
    wanted = answers_of(plain, "ar")
    engine = engine_of(draft_quantization="int4-weights")
    assert engine.info.draft_quantization == "int4-weights"
    assert engine.info.weight_bytes > plain.info.weight_bytes
    given = answers_of(engine, "speculative", together=False)
    assert near_ties([ask(name, [0]) for name in given], given, wanted, margins) <= 1
    assert sum(answer.finished.stats.accepted_draft_tokens for answer in given.values()) > 50


def test_narrower_weights_multiply_in_passes_that_only_draft() -> None:
    """They would verify, and the answers be a smaller model's; or never draft, and only take memory."""
    engine = engine_of(draft_quantization="int4-weights", quantization="int8")
    decoder = engine.runner.decoder
    calls: list[str] = []
    for name, layers in (("full", decoder.layers), ("narrow", decoder.draft_layers)):
        product = layers[0].qkv.product  # type: ignore[attr-defined]
        layers[0].qkv.product = lambda x, name=name, product=product: (calls.append(name), product(x))[1]  # type: ignore[attr-defined]
    phases: list[set[Phase]] = []
    schedule = engine.scheduler.schedule

    def watched() -> Any:
        plan = schedule()
        if plan is not None and plan.groups:
            phases.append({group.phase for group in plan.groups})
        return plan

    engine.scheduler.schedule = watched  # type: ignore[method-assign]
    answers_of(engine, "speculative")
    assert calls == ["narrow" if only == {Phase.DRAFT} else "full" for only in phases]
    assert set(calls) == {"narrow", "full"}
