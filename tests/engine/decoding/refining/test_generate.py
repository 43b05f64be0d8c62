"""Refinement of random tokens against transformers' own `generate`, which is given the draws of the engine, token for
token and pass for pass. If one fails, answers are not those of the model that the user chose."""

from __future__ import annotations

import pytest

from tests.engine.decoding.refining.cases import check, random_tasks
from tests.engine.decoding.refining.conftest import Pairs


@pytest.mark.parametrize("temperature", [0.0, 0.8, 1.0])
def test_writes_what_transformers_writes(pairs: Pairs, temperature: float) -> None:
    """Canvases that are certain early and ones that take all their steps; ends within a canvas, and none."""
    seen = check(*pairs("calm"), list(random_tasks(40, temperature)), shared_commit=True)
    assert min(seen[what] for what in ("stop", "length", "commits", "certain", "all steps")) >= 4, seen


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_canvases_that_never_come_to_rest_end_all_the_same(pairs: Pairs, temperature: float) -> None:
    """Where most positions become random tokens again in every step."""
    seen = check(*pairs("restless"), list(random_tasks(25, temperature)), shared_commit=True)
    assert min(seen[what] for what in ("stop", "length", "commits", "all steps")) >= 4, seen


@pytest.mark.parametrize("name", ["patient", "hasty"])
def test_a_canvas_is_done_by_the_model_s_own_rule(pairs: Pairs, name: str) -> None:
    """Unchanged for two steps, or for none; certain to another degree."""
    seen = check(*pairs(name), list(random_tasks(17, 0.8)), shared_commit=True)
    assert min(seen["certain"], seen["all steps"]) >= 3, seen


def test_a_pass_of_its_own_for_every_commit_changes_no_token(pairs: Pairs) -> None:
    """`--no-shared-commit`: the same text for one pass a canvas more."""
    assert check(*pairs("calm"), list(random_tasks(15, 0.8)), shared_commit=False)["commits"] > 4
