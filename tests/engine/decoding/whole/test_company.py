"""Company and preemption never change an answer of a model that sees the whole text, exact or approximate.

Exactly so in float64. If one fails, a user's text depends on who else is using the server.
"""

from __future__ import annotations

import random
from collections import Counter
from itertools import count
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.batch import BatchPlan
from engine.engine import Engine
from engine.request import Request
from tests.engine.decoding.whole.conftest import CONFIDENT, ORDERS, Family
from tests.engine.driving import Answer, Visit, ask, drive
from tests.engine.strategies import prompt_of, samplings

MODEL_LEN = 64
CACHES = ("none", "prefix", "dual")


@st.composite
def requests(draw: st.DrawFn, name: str, request_id: str) -> Request:
    """One request that fits into MODEL_LEN: completions and infill, with every knob."""
    prompt = prompt_of(draw(st.integers(0, 1)), draw(st.sampled_from((0, 3, 9))), draw(st.integers(1, 8)))
    fields: dict[str, Any] = draw(samplings())
    order = draw(st.sampled_from(ORDERS[name.removesuffix("_moe")]))
    fields["remasking"] = order
    fields["max_tokens"] = draw(st.integers(4, 24))
    fields["block_length"] = draw(st.sampled_from((4, 8, 16, 0) if name == "dream" else (4, 8, 16)))
    fields["threshold"] = draw(st.sampled_from((None, 0.3))) if order in CONFIDENT else None
    fields["max_denoising_steps"] = draw(st.sampled_from((None, 1, 3)))
    fields["ignore_eos"] = draw(st.booleans())
    fields["priority"] = draw(st.sampled_from((0, 0, -1, 1)))
    fields["include_drafts"] = draw(st.booleans())
    mode = draw(st.sampled_from(("diffusion", "diffusion", "infill")))
    if mode == "infill":
        fields["suffix_token_ids"] = prompt_of(9, 0, draw(st.integers(0, 6)))
    else:
        fields["stop_token_ids"] = draw(st.sampled_from((tuple(range(40, 96)), ())))
    return ask(request_id, prompt, mode, **fields)


@st.composite
def companies(draw: st.DrawFn, name: str) -> list[Visit]:
    """Requests that come at different times; some leave before they are done."""
    visits = []
    for i in range(draw(st.integers(2, 6))):
        abort_after = draw(st.one_of(st.none(), st.none(), st.integers(0, 12)))
        visits.append(Visit(draw(requests(name, f"r{i}")), draw(st.integers(0, 10)), abort_after))
    return visits


POOLS = st.fixed_dictionaries(
    {
        "page_size": st.sampled_from((1, 4, 16)),
        "kv_cache_tokens": st.sampled_from((MODEL_LEN, 80, 112, 512)),
        "max_batch_tokens": st.sampled_from((MODEL_LEN, 96, 256)),
        "max_running": st.integers(1, 5),
        "prefix_caching": st.booleans(),
    }
)


def preempt_at_random(engine: Engine) -> None:
    """Before every third pass one of the running sequences loses its pages.

    These models take the pages of their whole text at once, so the scheduler itself never has to take them away.
    """
    schedule, rng, passes = engine.scheduler.schedule, random.Random(0), count(1)

    def disturbed() -> BatchPlan:
        running = list(engine.scheduler.running)
        if running and next(passes) % 3 == 0:
            engine.scheduler._preempt(rng.choice(running))
        return schedule()

    engine.scheduler.schedule = disturbed  # type: ignore[method-assign]


class Company:
    """Compares answers in company with the same requests' answers alone."""

    def __init__(self, family: Family, context_cache: str) -> None:
        self.family = family
        self.fields = {"context_cache": context_cache, "max_block_length": 16, "max_infill_window": 32}
        self.known: dict[bytes, Answer] = {}

    def alone(self, request: Request) -> Answer:
        only = msgspec.structs.replace(request, request_id="alone", priority=0)
        key = msgspec.msgpack.encode(only)
        if key not in self.known:
            self.known[key] = drive(self.family.make(**self.fields), [only])["alone"]
        return self.known[key]

    def check(self, visits: list[Visit], **pool: Any) -> Counter[str]:
        """Runs the visits together and compares. `drive` checks the books, and that the pool is whole afterwards."""
        engine = self.family.make(**self.fields, max_model_len=MODEL_LEN, **pool)
        preempt_at_random(engine)
        answers = drive(engine, visits)
        seen: Counter[str] = Counter()
        for visit in visits:
            answer, alone = answers[visit.request.request_id], self.alone(visit.request)
            stats = answer.finished.stats
            seen.update({answer.finished.reason: 1, "preempted": stats.preemptions})
            assert stats.cached_tokens == 0
            if answer.finished.reason == "abort":
                assert answer.tokens == alone.tokens[: len(answer.tokens)], visit.request
            else:
                assert answer.outcome == alone.outcome, visit.request
        return seen


CASES = [*((name, cache) for name in ORDERS for cache in CACHES), ("llada_moe", "none")]


@pytest.mark.parametrize(("name", "context_cache"), CASES)
def test_company_never_changes_the_answer(
    families: dict[tuple[str, str], Family], name: str, context_cache: str
) -> None:
    company = Company(families[name, "float64"], context_cache)
    seen: Counter[str] = Counter()

    @settings(
        max_examples=8 if name == "llada_moe" else 20, derandomize=True, deadline=None, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example, HealthCheck.data_too_large],
    )  # fmt: skip
    @given(companies(name), POOLS)
    def check(visits: list[Visit], pool: dict[str, Any]) -> None:
        seen.update(company.check(visits, **pool))

    check()
    assert min(seen["preempted"], seen["length"], seen["stop"], seen["abort"]) > 0
