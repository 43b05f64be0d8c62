"""Company, preemption and leaving clients on two ranks: every request gets what it gets alone on one.

If one fails, a page, a light cone or a light-hearted abort reaches one rank and not the other, and texts mix.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings

from engine.models.files import model_directory
from tests.conftest import MakeEngine
from tests.engine.answers.margins import Margins
from tests.engine.answers.test_builtin_answers import mixed_requests, near_ties
from tests.engine.answers.test_company import Solo, crowd
from tests.engine.driving import Visit, drive
from tests.engine.ranks.crew import Crew
from tests.engine.ranks.test_equality import check_pools
from tests.engine.strategies import companies, pools


def test_company_on_two_ranks_never_changes_an_answer(
    pair: Crew, tiny_engine: MakeEngine, tiny_checkpoint: Path
) -> None:
    solo = Solo(tiny_engine, shared_commit=True, company=partial(pair.make, tiny_checkpoint))

    @settings(
        max_examples=10, derandomize=True, deadline=None, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example, HealthCheck.data_too_large],
    )  # fmt: skip
    @given(companies(most=5), pools())
    def check(visits: list[Visit], pool: dict[str, Any]) -> None:
        solo.check(visits, **pool)
        check_pools(pair)

    check()


def test_a_crowd_in_a_small_pool(pair: Crew, tiny_engine: MakeEngine, tiny_checkpoint: Path) -> None:
    """The same, where each way in which company could matter is known to have occurred."""
    solo = Solo(tiny_engine, shared_commit=False, company=partial(pair.make, tiny_checkpoint))
    seen = solo.check(crowd(), page_size=8, kv_cache_tokens=176, max_batch_tokens=43, max_running=5)
    assert (seen["requests"], seen["abort"], seen["error"]) == (12, 2, 0)
    assert seen["preempted"] > 0
    assert seen["cached"] > 0
    assert seen["accepted"] > 0
    check_pools(pair)


def test_the_built_in_model_in_float32_differs_at_near_ties_alone(
    pair: Crew, builtin_engine: MakeEngine, record_property: Callable[[str, object], None]
) -> None:
    """Sums in another order may decide between two candidates that are nearly alike, and nothing else may."""
    requests = mixed_requests()[:20]
    one = builtin_engine(max_running=20)
    margins = Margins(one)
    wanted = drive(one, requests)
    given_ = drive(pair.make(model_directory("builtin"), "float32", max_running=20), requests)
    count = near_ties(requests, given_, wanted, margins)
    record_property("answers that differ at a near tie", count)
    assert count <= 2
    check_pools(pair)
