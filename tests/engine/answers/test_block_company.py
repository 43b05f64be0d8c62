"""Company never changes the answer of a model whose context is encoded by blocks, for each combination of its traits.

The KV of a token depends on the rest of its block there: a prompt cut within a block, a page shared whose block ends
in another text, or a block taken up again after a preemption with other neighbours would show in float64 at once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.request import Request
from tests.engine.answers.test_company import Solo
from tests.engine.decoding.blocks.cases import BLOCK_LENGTHS, ORDERS, family_of, make_block_pair
from tests.engine.driving import Visit, ask, drive
from tests.engine.strategies import prompt_of, samplings

EDITING = {"llada2_1"}
"""Families that may replace what they have unmasked."""
LONGEST = 96
"""Longest prompt plus answer: whole blocks of every length."""

Solos = Callable[[str, bool], Solo]


@pytest.fixture(scope="module")
def solos(tmp_path_factory: pytest.TempPathFactory) -> Solos:
    """(name of the checkpoint, shared_commit) -> answers of requests that have an engine of their own."""
    root = tmp_path_factory.mktemp("block_company")
    make = cache(lambda name: make_block_pair(root, name, "float64").make)

    @cache
    def solo(name: str, shared_commit: bool) -> Solo:
        limits = {"max_block_length": BLOCK_LENGTHS[name], "max_infill_window": 0, "max_model_len": LONGEST}
        return Solo(make(name), shared_commit=shared_commit, limits=limits)

    return solo


@st.composite
def block_requests(draw: st.DrawFn, request_id: str, name: str) -> Request:
    """One request that fits into LONGEST, with whatever the family understands."""
    order = draw(st.sampled_from(list(ORDERS[family_of(name)].values())))
    prompt = prompt_of(draw(st.integers(0, 1)), draw(st.sampled_from((0, 3, 16, 33, 40))), draw(st.integers(1, 12)))
    fields: dict[str, Any] = draw(samplings())
    fields["max_tokens"] = draw(st.integers(4, 40))
    fields["block_length"] = BLOCK_LENGTHS[name]
    fields["threshold"] = draw(st.sampled_from(order.thresholds))
    fields["remasking"] = order.remasking
    if order.steps:
        fields["max_denoising_steps"] = draw(st.sampled_from((None, 1, 2, 3)))
    if family_of(name) in EDITING and draw(st.sampled_from((True, True, False))):
        fields["edit_threshold"] = draw(st.sampled_from((0.0, 0.1, 0.5)))
        fields["max_post_steps"], fields["max_denoising_steps"] = draw(st.integers(0, 3)), None
    fields["ignore_eos"] = draw(st.booleans())
    fields["stop_token_ids"] = draw(st.sampled_from(((), (20,), (7, 8, 9))))
    fields["cache_salt"] = draw(st.sampled_from(("", "", "salt")))
    fields["priority"] = draw(st.sampled_from((0, 0, 0, -1, 1)))
    fields["include_drafts"] = draw(st.booleans())
    return ask(request_id, prompt, "diffusion", **fields)


@st.composite
def block_companies(draw: st.DrawFn, name: str) -> list[Visit]:
    """Requests that come at different times; some leave before they are done."""
    visits = []
    for i in range(draw(st.integers(2, 7))):
        abort_after = draw(st.one_of(st.none(), st.none(), st.none(), st.integers(0, 20)))
        visits.append(Visit(draw(block_requests(f"r{i}", name)), draw(st.integers(0, 12)), abort_after))
    return visits


def block_pools(block_length: int) -> st.SearchStrategy[dict[str, Any]]:
    """EngineConfig fields of engines that are short of everything, down to a pool that holds one request at a time."""
    return st.fixed_dictionaries(
        {
            "page_size": st.sampled_from((1, 4, 8, 16, 64)),
            "kv_cache_tokens": st.sampled_from((128, 192, 512)),
            "max_batch_tokens": st.sampled_from((4 * block_length, 4 * block_length + 7, 256)),
            "max_running": st.integers(1, 6),
            "prefix_caching": st.sampled_from((True, True, False)),
        }
    )


@pytest.mark.parametrize("shared_commit", [False, True])
@pytest.mark.parametrize("name", ["sdar", "sdar_8", "stable_diffcoder", "fast_dllm_v2", "llada2_1", "sdar_moe"])
def test_company_never_changes_the_answer(solos: Solos, name: str, shared_commit: bool) -> None:
    """Somebody's text would depend on who else is using the server. Every option and shortage at once."""

    @settings(
        max_examples=12, derandomize=True, deadline=None, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example, HealthCheck.data_too_large],
    )  # fmt: skip
    @given(block_companies(name), block_pools(BLOCK_LENGTHS[name]))
    def check(visits: list[Visit], pool: dict[str, Any]) -> None:
        solos(name, shared_commit).check(visits, **pool)

    check()


def crowd(name: str) -> list[Visit]:
    """Ten requests with prompts that begin alike, in two waves; two leave early."""
    visits = []
    orders = list(ORDERS[family_of(name)].values())
    for i in range(10):
        order = orders[i % len(orders)]
        fields: dict[str, Any] = {
            "max_tokens": 34, "block_length": BLOCK_LENGTHS[name], "temperature": (0.0, 0.8, 1.2)[i % 3], "seed": i,
            "threshold": order.thresholds[0], "remasking": order.remasking, "ignore_eos": i % 2 == 0,
            "repetition_penalty": 1.2 if i % 4 == 1 else 1.0, "include_drafts": i % 5 == 0,
        }  # fmt: skip
        if family_of(name) in EDITING and i % 3 < 2:
            fields |= {"edit_threshold": (0.0, 0.3)[i % 2], "max_post_steps": i % 4}
        request = ask(f"r{i}", prompt_of(0, 40, 1 + i), "diffusion", **fields)
        visits.append(Visit(request, 12 * (i // 5), 9 if i in (3, 7) else None))
    return visits


@pytest.mark.parametrize("shared_commit", [False, True])
@pytest.mark.parametrize("name", sorted(BLOCK_LENGTHS))
@pytest.mark.parametrize("page_size", [1, 16])
def test_a_crowd_in_a_small_pool(solos: Solos, name: str, page_size: int, shared_commit: bool) -> None:
    """The same, where each way in which company could matter is known to have occurred."""
    seen = solos(name, shared_commit).check(
        crowd(name), page_size=page_size, kv_cache_tokens=208, max_batch_tokens=4 * BLOCK_LENGTHS[name], max_running=5
    )
    assert (seen["requests"], seen["abort"], seen["error"]) == (10, 2, 0)
    assert seen["preempted"] > 0
    assert seen["cached"] > 0


@pytest.mark.parametrize("page_size", [4, 16, 64])
@pytest.mark.parametrize("name", ["sdar", "fast_dllm_v2", "fast_dllm_v2_32", "llada2_1"])
def test_only_whole_blocks_are_reused(solos: Solos, name: str, page_size: int) -> None:
    """A prompt that begins like another one, but parts from it within a block, would read KV of the other's text."""
    solo, length = solos(name, True), BLOCK_LENGTHS[name]
    engine = solo.make(**solo.limits, page_size=page_size, kv_cache_tokens=512)
    unit = max(page_size, length)
    for shared in sorted({length - 1, unit - 1, unit, unit + 1, min(unit + length, 77)}):
        fields = {"block_length": length, "cache_salt": f"{shared}", "max_tokens": 8}
        first, second = (ask("r", prompt_of(shared, shared, tail), "diffusion", **fields) for tail in (9, 10))
        for request in (first, second):
            answer = drive(engine, [request])["r"]
            assert answer.outcome == solo(request).outcome
        assert answer.finished.stats.cached_tokens == shared // unit * unit
