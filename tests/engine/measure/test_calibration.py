"""What passes cost on this machine. If one fails, `auto` chooses widths by figures that mean nothing."""

from __future__ import annotations

import pytest

from engine.batch import BatchPlan
from engine.measure import calibration
from engine.measure.calibration import CONTEXT, measure_costs
from engine.runner.model_runner import ModelRunner
from tests.conftest import MakeEngine
from tests.engine.driving import ask, drive


def by_arithmetic(runner: ModelRunner, plan: BatchPlan) -> float:
    """Seconds by a formula in place of a clock: 5, 2 a query token, 0.01 a position and 0.001 a pair of both."""
    spans = list(plan.spans)
    return sum(2 * len(s.token_ids) + s.start * (0.01 + 0.001 * len(s.token_ids)) for s in spans) + 5.0


def test_the_table_gives_back_what_was_measured(builtin_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = builtin_engine(max_running=8, kv_cache_tokens=16384, calibration_seconds=60.0)
    monkeypatch.setattr(calibration, "_time_pass", by_arithmetic)
    table = measure_costs(engine.runner, engine.config, engine.info.max_model_len)
    assert table.context == CONTEXT
    assert table.per_position == pytest.approx(0.01)
    assert table.per_pair == pytest.approx(0.001)
    for width, batch, context in ((1, 1, 0), (8, 8, 300), (32, 2, 1000)):
        expected = 5 + batch * (2 * width + context * (0.01 + 0.001 * width))
        assert table.lookup(width, batch, context) == pytest.approx(expected)


@pytest.mark.parametrize("fields", [{"max_model_len": 40}, {"kv_cache_tokens": 256}, {"max_running": 1}])
def test_small_engines_are_measured_too_and_serve_afterwards(
    builtin_engine: MakeEngine, fields: dict[str, int]
) -> None:
    engine = builtin_engine(**({"max_running": 4} | fields))
    table = measure_costs(engine.runner, engine.config, engine.info.max_model_len)
    assert table.per_position >= 0
    assert table.per_pair >= 0
    assert all(table.lookup(width, 3, 20) > 0 for width in table.widths)
    answer = drive(engine, [ask("a", [8, 9, 10], "auto", max_tokens=8, ignore_eos=True)])["a"]
    assert len(answer.tokens) == 8


def test_what_disturbs_a_part_of_the_start_leaves_no_trace(
    builtin_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else `auto` begins with figures that are several times too high for some widths."""
    engine = builtin_engine(max_running=8, kv_cache_tokens=16384, calibration_seconds=60.0)
    calls = 0

    def disturbed(runner: ModelRunner, plan: BatchPlan) -> float:
        nonlocal calls
        calls += 1
        return by_arithmetic(runner, plan) * (4.0 if 25 < calls < 45 else 1.0)

    monkeypatch.setattr(calibration, "_time_pass", disturbed)
    table = measure_costs(engine.runner, engine.config, engine.info.max_model_len)
    assert calls > 60
    for width, batch in ((1, 1), (8, 8), (32, 2)):
        assert table.lookup(width, batch, 0) == pytest.approx(5 + batch * 2 * width, rel=1e-6)


def test_no_pass_is_measured_to_cost_more_than_a_larger_one(
    builtin_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = builtin_engine(max_running=4, kv_cache_tokens=4096, calibration_seconds=60.0)

    def disturbed(runner: ModelRunner, plan: BatchPlan) -> float:
        plain = sum(len(span.token_ids) for span in plan.spans) == 1
        return by_arithmetic(runner, plan) * (100.0 if plain else 1.0)

    monkeypatch.setattr(calibration, "_time_pass", disturbed)
    table = measure_costs(engine.runner, engine.config, engine.info.max_model_len)
    assert table.lookup(1, 1) == table.lookup(2, 1)
