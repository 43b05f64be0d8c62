"""One seed, one text: alone, in company, preempted, from the prefix cache. If one fails, somebody's text depends on who
else is using the server, or what was streamed is withdrawn."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.events import DraftUpdated, TokensSettled
from engine.request import Request
from tests.engine.answers.test_company import Solo
from tests.engine.decoding.refining.conftest import Pair, Pairs
from tests.engine.driving import Visit, ask, drive
from tests.engine.strategies import prompt_of
from tests.reference.refining.checkpoints import CANVAS

LONGEST = 96
"""Longest prompt plus answer."""
LIMITS = {"max_block_length": CANVAS, "max_infill_window": 0, "max_model_len": LONGEST}
REFINING = {"block_length": CANVAS, "threshold": None, "remasking": "entropy_bound"}


@pytest.fixture(scope="module")
def solo(pairs: Pairs) -> Solo:
    """Answers of requests that have an engine of their own."""
    return Solo(pairs("calm")[0], shared_commit=True, limits=LIMITS)


@st.composite
def refining_requests(draw: st.DrawFn, request_id: str) -> Request:
    """One request that fits into LONGEST, with whatever such a model understands."""
    prompt = prompt_of(draw(st.integers(0, 1)), draw(st.sampled_from((0, 3, 16, 33, 40))), draw(st.integers(1, 12)))
    fields: dict[str, Any] = {"temperature": draw(st.sampled_from((0.0, 0.7, 1.0, 1.5)))}
    fields["seed"] = draw(st.integers(0, 3)) * 2**33
    options: dict[str, st.SearchStrategy[Any]] = {
        "logit_bias": st.just({20: 3.0, 30: -2.0}), "top_k": st.integers(2, 12), "top_p": st.sampled_from((0.5, 0.9)),
        "min_p": st.just(0.05), "min_tokens": st.integers(1, 4), "logprobs": st.integers(0, 2),
        "allowed_token_ids": st.just(tuple(range(60))), "max_denoising_steps": st.integers(1, 9),
    }  # fmt: skip
    for name in draw(st.lists(st.sampled_from(sorted(options)), unique=True, max_size=4)):
        fields[name] = draw(options[name])
    fields["max_tokens"] = draw(st.integers(4, 40))
    fields["ignore_eos"] = draw(st.booleans())
    fields["stop_token_ids"] = draw(st.sampled_from(((), (20,), (7, 8, 9))))
    fields["cache_salt"] = draw(st.sampled_from(("", "", "salt")))
    fields["priority"] = draw(st.sampled_from((0, 0, 0, -1, 1)))
    fields["include_drafts"] = draw(st.booleans())
    return ask(request_id, prompt, "diffusion", **REFINING, **fields)


@st.composite
def refining_companies(draw: st.DrawFn) -> list[Visit]:
    """Requests that come at different times; some leave before they are done."""
    visits = []
    for i in range(draw(st.integers(2, 6))):
        abort_after = draw(st.one_of(st.none(), st.none(), st.none(), st.integers(0, 20)))
        visits.append(Visit(draw(refining_requests(f"r{i}")), draw(st.integers(0, 12)), abort_after))
    return visits


POOLS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "page_size": st.sampled_from((1, 4, 16)),
        "kv_cache_tokens": st.sampled_from((112, 192, 512)),
        "max_batch_tokens": st.sampled_from((32, 37, 256)),
        "max_running": st.integers(1, 6),
        "prefix_caching": st.sampled_from((True, True, False)),
    }
)
"""EngineConfig fields of engines that are short of everything, down to a pool that holds one request at a time."""


def test_company_never_changes_the_answer(solo: Solo) -> None:
    """Every option and shortage at once."""

    @settings(
        max_examples=12, derandomize=True, deadline=None, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example, HealthCheck.data_too_large],
    )  # fmt: skip
    @given(refining_companies(), POOLS)
    def check(visits: list[Visit], pool: dict[str, Any]) -> None:
        solo.check(visits, **pool)

    check()


def crowd() -> list[Visit]:
    """Ten requests with prompts that begin alike, in two waves; two leave early."""
    visits = []
    for i in range(10):
        fields: dict[str, Any] = {
            "max_tokens": 34, "temperature": (0.0, 0.8, 1.2)[i % 3], "seed": i, "ignore_eos": i % 2 == 0,
            "include_drafts": i % 5 == 0,
        }  # fmt: skip
        request = ask(f"r{i}", prompt_of(0, 40, 1 + i), "diffusion", **REFINING, **fields)
        visits.append(Visit(request, 12 * (i // 5), 9 if i in (3, 7) else None))
    return visits


@pytest.mark.parametrize("page_size", [1, 16])
def test_a_crowd_in_a_small_pool(solo: Solo, page_size: int) -> None:
    """Where each way in which company could matter is known to have occurred: a preempted canvas begins again."""
    seen = solo.check(crowd(), page_size=page_size, kv_cache_tokens=208, max_batch_tokens=32, max_running=5)
    assert (seen["requests"], seen["abort"], seen["error"]) == (10, 2, 0)
    assert seen["preempted"] > 0
    assert seen["cached"] > 0


def test_nothing_settles_before_a_canvas_ends(pair: Pair) -> None:
    """What was streamed is never withdrawn: until then there are drafts, which say that they are drafts."""
    request = ask(
        "r", prompt_of(0, 9, 3), "diffusion", **REFINING, max_tokens=3 * CANVAS - 2, ignore_eos=True,
        include_drafts=True, temperature=0.8,
    )  # fmt: skip
    answer = drive(pair[0](**LIMITS), [request])["r"]
    settled = [event.token_ids for event in answer.events if isinstance(event, TokensSettled)]
    assert [len(tokens) for tokens in settled] == [CANVAS, CANVAS, CANVAS - 2]
    drafts = [event for event in answer.events if isinstance(event, DraftUpdated) and event.token_ids]
    assert drafts
    assert all(None not in draft.token_ids and draft.length == CANVAS for draft in drafts)
    assert {len(draft.token_ids) for draft in drafts} == {CANVAS, CANVAS - 2}, "a draft of what will never be shown"
    assert [draft.step for draft in drafts if draft.block == 0] == list(range(1, 1 + sum(d.block == 0 for d in drafts)))
    assert len({tuple(draft.token_ids) for draft in drafts if draft.block == 0}) > 1, "every position may change"


def test_a_seed_chooses_the_text_and_the_temperature_only_the_draws(pair: Pair) -> None:
    """Also at temperature 0 the canvas is noise: another seed begins elsewhere."""

    def text(**fields: Any) -> list[int]:
        request = ask("r", [20, 21, 22], "diffusion", **REFINING, max_tokens=16, ignore_eos=True, **fields)
        return drive(pair[0](**LIMITS), [request])["r"].tokens

    assert text(seed=5) == text(seed=5)
    assert len({tuple(text(seed=seed)) for seed in range(4)}) > 1
    assert text(seed=5, temperature=1.0) != text(seed=5)


def test_a_failed_pass_is_run_again_and_changes_no_token(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another request's error must not be heard: the pass that is repeated is told what it was told before."""
    requests = [
        ask(f"r{i}", prompt_of(i, 5, 2), "diffusion", **REFINING, max_tokens=16, seed=i, ignore_eos=True)
        for i in range(2)
    ]
    wanted = drive(pair[0](**LIMITS), requests)
    engine = pair[0](**LIMITS)
    decide, calls = engine.policies["diffusion"].decide, []

    def failing(group: Any, logits: Any) -> Any:
        calls.append(len(group.spans))
        choices = decide(group, logits)
        if len(calls) == 3:
            raise RuntimeError("a kernel failed after it wrote")
        return choices

    monkeypatch.setattr(engine.policies["diffusion"], "decide", failing)
    found = drive(engine, requests)
    assert calls[2:5] == [2, 1, 1], "the third pass was to be repeated, one by one"
    assert {name: answer.outcome for name, answer in found.items()} == {n: a.outcome for n, a in wanted.items()}
