"""Where blocks begin and end, and what is asked of the model for them. If one fails, tokens see less of their block
than the model was trained with, or passes and logits are paid for that nobody needs."""

from __future__ import annotations

from typing import Any

import pytest

from engine.batch import Phase, Span
from engine.engine import Engine
from engine.errors import RequestError
from tests.engine.decoding.blocks.cases import BLOCK_LENGTHS
from tests.engine.decoding.blocks.conftest import Pairs
from tests.engine.decoding.harness import random_prompt
from tests.engine.driving import Answer, ask, drive

EVERY = sorted(BLOCK_LENGTHS)


def watched(engine: Engine) -> list[Span]:
    """Fills the returned list with the spans of all passes as they run."""
    spans: list[Span] = []
    forward = engine.runner.forward

    def watching(plan: Any) -> Any:
        spans.extend(plan.spans)
        return forward(plan)

    engine.runner.forward = watching  # type: ignore[method-assign]
    return spans


def answer_of(engine: Engine, name: str, prompt: list[int], **fields: Any) -> Answer:
    request = ask("r", prompt, "diffusion", **{"block_length": BLOCK_LENGTHS[name], "ignore_eos": True} | fields)
    return drive(engine, [request])["r"]


@pytest.mark.parametrize("extra", [-1, 0, 1])
@pytest.mark.parametrize("name", EVERY)
def test_a_prompt_is_cut_at_the_boundaries_of_blocks_alone(block_pairs: Pairs, name: str, extra: int) -> None:
    """However little room a pass has for it."""
    length = BLOCK_LENGTHS[name]
    prompt = random_prompt(9 * length + extra)
    engine = block_pairs(name, "float64").make(
        max_batch_tokens=4 * length + 3, max_block_length=length, max_infill_window=0, prefix_caching=False
    )
    spans = watched(engine)
    answer = answer_of(engine, name, prompt)
    prefill = [span for span in spans if span.phase is Phase.PREFILL]
    assert [span.start for span in prefill] == [0, *(span.end for span in prefill[:-1])]
    assert {span.end % length for span in prefill} == {0}
    assert prefill[-1].end == len(prompt) // length * length
    whole = block_pairs(name, "float64").make(max_batch_tokens=1024)
    assert answer_of(whole, name, prompt).tokens == answer.tokens


@pytest.mark.parametrize("name", EVERY)
def test_only_the_rows_that_choose_something_become_logits(block_pairs: Pairs, name: str) -> None:
    """A row of logits over 150 000 tokens costs as much as a good part of the model."""
    length = BLOCK_LENGTHS[name]
    shifted = name.startswith("fast")
    engine = block_pairs(name, "float64").make(shared_commit=False)
    spans = watched(engine)
    answer_of(engine, name, random_prompt(length), max_tokens=2 * length, threshold=0.5)
    rows = {phase: [span.num_logits for span in spans if span.phase is phase] for phase in Phase}
    assert rows[Phase.PREFILL] == [int(shifted)]
    assert set(rows[Phase.COMMIT]) == {int(shifted)}
    assert set(rows[Phase.DENOISE]) == ({7, 8} if shifted else {length})


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("max_tokens", [1, 5])
def test_the_last_block_is_as_long_as_the_published_one(block_pairs: Pairs, name: str, max_tokens: int) -> None:
    """Also where the answer ends long before it: another length is another distribution."""
    length = BLOCK_LENGTHS[name]
    engine = block_pairs(name, "float64").make()
    spans = watched(engine)
    prompt = random_prompt(length + 1)
    answer = answer_of(engine, name, prompt, max_tokens=max_tokens, include_drafts=True, threshold=1.0)
    assert len(answer.tokens) == max_tokens
    end = len(prompt) + max_tokens
    reached = end if name == "stable_diffcoder" else -(-end // length) * length
    assert max(span.end for span in spans) == reached
    assert all(len(draft.token_ids) <= max_tokens for draft in answer.drafts), "a draft of what will never be shown"


@pytest.mark.parametrize("name", ["sdar", "sdar_8", "stable_diffcoder"])
def test_a_commit_shares_its_pass_and_changes_no_token(block_pairs: Pairs, name: str) -> None:
    """A third of SDAR's passes would be spent on commits alone."""
    length = BLOCK_LENGTHS[name]
    answers = [
        answer_of(
            block_pairs(name, "float64").make(shared_commit=shared), name, random_prompt(7), max_tokens=5 * length,
            threshold=0.3,
        )
        for shared in (False, True)
    ]  # fmt: skip
    assert answers[0].outcome == answers[1].outcome
    alone, shared = (answer.finished.stats for answer in answers)
    assert alone.blocks == shared.blocks >= 4
    assert alone.passes - shared.passes == alone.blocks
    assert alone.denoising_steps == shared.denoising_steps


@pytest.mark.parametrize("name", EVERY)
def test_an_empty_prompt_is_refused_and_one_token_is_enough(block_pairs: Pairs, name: str) -> None:
    """A first block of nothing but masks says nothing about what was asked."""
    engine = block_pairs(name, "float64").make()
    with pytest.raises(RequestError, match="empty"):
        answer_of(engine, name, [])
    assert len(answer_of(engine, name, [9], max_tokens=3).tokens) == 3
