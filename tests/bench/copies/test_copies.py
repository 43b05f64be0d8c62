"""`lightcone bench copies`: what it compares. If it fails, figures about drafts from texts are about something else."""

from __future__ import annotations

import random

import pytest

from bench.copies.command import MODES, Served, changed, prediction_runs, prompt_runs, without_prompts
from bench.prompts import Text
from engine.models.files import model_directory
from tests.conftest import MakeEngine
from tests.reference.prompts import prompt_ids


def test_a_share_of_a_prediction_is_wrong() -> None:
    answer, dice = list(range(1000)), random.Random(0)
    assert changed(answer, 0.0, [7], dice) == answer
    some = changed(answer, 0.2, [5000], dice)
    assert 100 < some.count(5000) < 170
    assert 850 < len(set(some) & set(answer)) < 950
    assert len(changed(answer[:1], 1.0, [7], dice)) >= 1


def test_runs_of_predictions_answer_alike_and_count_what_was_right(builtin_engine: MakeEngine) -> None:
    engine = builtin_engine()
    runs = prediction_runs(engine, prompt_ids(2), [0.0, 1.0], 40)
    assert [run.name for run in runs] == [
        f"{mode}, {what}" for mode in MODES for what in ("none", "0% wrong", "100% wrong")
    ]
    answers = [run.run(2, "salt") for run in runs]
    assert all(each == answers[0] for each in answers)
    figures = [run.figures(runs[at - at % 3]) for at, run in enumerate(runs)]
    for none, right, wrong in zip(figures[::3], figures[1::3], figures[2::3], strict=True):
        assert none["ratio"] == 1.0
        assert (none["accepted"], none["rejected"]) == (0, 0)
        assert int(str(right["accepted"])) > int(str(wrong["accepted"]))
        assert float(str(right["tokens_per_pass"])) > float(str(none["tokens_per_pass"]))


def test_runs_of_prompts_differ_in_drafts_alone(builtin_engine: MakeEngine) -> None:
    copying, plain = builtin_engine(), without_prompts(builtin_engine())
    text = Text(model_directory("builtin"), plain.info.bos_token_id)
    runs = prompt_runs(copying, plain, prompt_ids(3), text, 40)
    again, again_copying, once, once_copying = [run.run(1, "salt") for run in runs]
    assert again == again_copying
    assert once == once_copying
    assert [run.engine is copying for run in runs] == [False, True, False, True]
    assert len(runs[0].requests[0].prompt_token_ids) > 2 * len(runs[2].requests[0].prompt_token_ids)


@pytest.mark.parametrize("in_flight", [1, 3])
def test_every_request_of_a_run_is_served(builtin_engine: MakeEngine, in_flight: int) -> None:
    engine = builtin_engine()
    served = Served("x", engine, prediction_runs(engine, prompt_ids(3), [], 5)[0].requests)
    assert {len(tokens) for tokens in served.run(in_flight, "").values()} == {5}
    assert len(served.stats) == 3
    assert len(served.rates) == 1
