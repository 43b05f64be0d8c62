"""The unmasking trace: the step that chose each token, and its confidence. If it is wrong, so is training by it."""

from __future__ import annotations

from typing import Any

import pytest

from engine.events import DraftUpdated, TokensSettled, TokenUnmasking
from engine.request import Request
from tests.conftest import MakeEngine
from tests.engine.driving import Answer, Visit, ask, drive
from tests.engine.strategies import prompt_of
from tests.reference.grammars import CLOSING, GRAMMARS


def asked(name: str = "r", mode: str = "diffusion", **fields: Any) -> Request:
    values: dict[str, Any] = {
        "max_tokens": 21, "temperature": 0.9, "seed": 4, "threshold": 0.2, "trace_unmasking": True,
        "suffix_token_ids": [50, 51, 52] if mode == "infill" else None,
    }  # fmt: skip
    return ask(name, prompt_of(0, 0, 9), mode, **(values | fields))


def trace_of(answer: Answer) -> list[TokenUnmasking]:
    """Of every token, an end token included."""
    told = [how for event in answer.events if isinstance(event, TokensSettled) for how in event.unmasking or []]
    last = answer.finished.stop_unmasking
    return told if last is None else [*told, last]


def check_against_drafts(answer: Answer) -> int:
    """Holds the trace against the drafts that the client saw after every step. Returns how many tokens both know."""
    seen: dict[tuple[int, int], dict[int, tuple[int | None, float | None]]] = {}
    known, count, starts = 0, 0, dict[int, int]()
    for event in answer.events:
        if isinstance(event, DraftUpdated):
            start = starts.setdefault(event.block, count - (event.length - len(event.token_ids)))
            first = event.length - len(event.token_ids)
            rows = zip(event.token_ids, event.confidences, strict=True)
            seen[event.block, event.step] = {start + first + i: row for i, row in enumerate(rows)}
        elif isinstance(event, TokensSettled):
            for token, how in zip(event.token_ids, event.unmasking or [], strict=True):
                before = seen.get((how.block, how.step - 1), {}).get(count)
                after = seen.get((how.block, how.step), {}).get(count)
                assert before is None or before[0] is None, "it was unmasked before the step that is told"
                if after is not None:
                    assert after == (token, how.confidence)
                    known += 1
                count += 1
    return known


@pytest.mark.parametrize("mode", ["diffusion", "infill"])
@pytest.mark.parametrize("shared", [False, True])
def test_the_trace_is_what_the_drafts_showed(tiny_engine: MakeEngine, mode: str, shared: bool) -> None:
    known = 0
    for seed in range(4):
        answer = drive(tiny_engine(shared_commit=shared), [asked(mode=mode, seed=seed, include_drafts=True)])["r"]
        trace = trace_of(answer)
        assert len(trace) == answer.finished.stats.completion_tokens
        assert [how.block for how in trace] == sorted(how.block for how in trace)
        for how in trace:
            assert (how.step == 0) == (how.confidence is None)
            assert how.confidence is None or 0.0 < how.confidence <= 1.0
        assert sum(how.step == 0 for how in trace) == (0 if mode == "infill" else -(-len(trace) // 7))
        known += check_against_drafts(answer)
    assert known > 5


def test_every_step_of_a_block_unmasks_something(tiny_engine: MakeEngine) -> None:
    """The steps told are all those that were taken: a trajectory without gaps."""
    answer = drive(tiny_engine(shared_commit=False), [asked(max_tokens=24, ignore_eos=True)])["r"]
    trace = trace_of(answer)
    steps = {(how.block, how.step) for how in trace if how.step}
    assert {(block, step) for block, last in dict(sorted(steps)).items() for step in range(1, last + 1)} == steps
    assert len(steps) == answer.finished.stats.denoising_steps


def test_company_and_preemption_change_no_trace(tiny_engine: MakeEngine) -> None:
    requests = [asked(f"r{i}", ("diffusion", "infill")[i % 2], seed=i, max_tokens=16) for i in range(6)]
    tight = {"kv_cache_tokens": 64, "page_size": 4, "max_model_len": 48, "max_block_length": 8, "max_batch_tokens": 64}
    answers = drive(tiny_engine(**tight, max_infill_window=24), map(Visit, requests))
    assert sum(answer.finished.stats.preemptions for answer in answers.values()) > 0
    for each in requests:
        alone = drive(tiny_engine(), [each])[each.request_id]
        steps = [(how.block, how.step) for how in trace_of(alone)]
        assert [(how.block, how.step) for how in trace_of(answers[each.request_id])] == steps


@pytest.mark.parametrize("name", GRAMMARS)
def test_tokens_that_a_grammar_placed_have_a_step_too(text_engine: MakeEngine, name: str) -> None:
    grammar = GRAMMARS[name][0]
    for seed in range(3):
        request = ask(
            "r", [40, 41, 42], "diffusion", grammar=grammar, max_tokens=40, temperature=0.8, seed=seed,
            logit_bias=CLOSING, trace_unmasking=True, block_length=8, threshold=0.3,
        )  # fmt: skip
        answer = drive(text_engine(), [request])["r"]
        trace = trace_of(answer)
        assert len(trace) == answer.finished.stats.completion_tokens
        assert sum(how.step == 0 for how in trace) <= 1 + answer.finished.stats.blocks


def test_nobody_is_told_who_did_not_ask(tiny_engine: MakeEngine) -> None:
    answer = drive(tiny_engine(), [asked(trace_unmasking=False)])["r"]
    assert trace_of(answer) == []
    assert all(event.unmasking is None for event in answer.events if isinstance(event, TokensSettled))
