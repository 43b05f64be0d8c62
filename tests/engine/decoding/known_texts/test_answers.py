"""Predictions and prompts as drafts: the answer is what it is without them, and comes in fewer passes.

If one fails, a client that says what it expects is told that instead of what the model says.
"""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.decoding.policies.speculation import Auto
from engine.engine import Engine
from engine.errors import RequestError
from engine.request import Grammar, Request
from tests.conftest import MakeEngine
from tests.engine.driving import Answer, Visit, ask, drive
from tests.engine.strategies import NARROW, prompt_of, samplings
from tests.reference.grammars import CLOSING, GRAMMARS
from tests.reference.prompts import prompt_ids

MODES = ("ar", "speculative", "auto")
TIGHT = {
    "kv_cache_tokens": 80, "page_size": 4, "max_model_len": 72, "max_block_length": 16, "max_batch_tokens": 64,
    "max_infill_window": 24,
}  # fmt: skip


def edited(tokens: list[int], dice: random.Random, share: float) -> list[int]:
    """The tokens with some left out, replaced or put in: each with this probability."""
    text: list[int] = []
    for token in tokens:
        if dice.random() >= share:
            text.append(token)
        elif dice.random() < 0.7:
            text += [dice.randrange(6, 96)] * dice.randint(1, 3)
    return text


def without_prompts(engine: Engine) -> Engine:
    """The engine, whose `auto` drafts by itself alone."""
    policy = engine.policies["auto"]
    assert isinstance(policy, Auto)
    policy.lookup.follows_prompts = False
    return engine


def predicting(request: Request, prediction: list[int], **changes: Any) -> Request:
    return msgspec.structs.replace(request, prediction_token_ids=prediction, **changes)


@pytest.mark.parametrize("mode", MODES)
def test_a_right_prediction_is_taken_many_tokens_a_pass(tiny_engine: MakeEngine, mode: str) -> None:
    """The point of it: a repeated file costs a pass for each 15 drafts that a verification holds."""
    request = ask("r", prompt_of(0, 0, 9), mode, max_tokens=60, temperature=1.0, seed=5)
    plain = drive(tiny_engine(max_block_length=16), [request])["r"]
    answer = drive(tiny_engine(max_block_length=16), [predicting(request, plain.tokens)])["r"]
    assert answer.outcome == plain.outcome
    stats = answer.finished.stats
    assert stats.passes <= 5 < plain.finished.stats.passes
    assert stats.accepted_prediction_tokens >= 50
    assert stats.rejected_prediction_tokens == 0
    assert plain.finished.stats.accepted_prediction_tokens == 0


@pytest.mark.parametrize("mode", MODES)
def test_what_is_right_of_a_prediction_saves_passes(tiny_engine: MakeEngine, mode: str) -> None:
    """One token in twelve is something else: the rest is still taken together."""
    dice, before, after, rejected = random.Random(3), 0, 0, 0
    for seed in range(2):
        request = ask("r", prompt_of(seed, 0, 9), mode, max_tokens=60, temperature=1.2, seed=seed)
        plain = drive(tiny_engine(), [request])["r"]
        answer = drive(tiny_engine(), [predicting(request, edited(plain.tokens, dice, 1 / 12))])["r"]
        assert answer.outcome == plain.outcome
        before, after = before + plain.finished.stats.passes, after + answer.finished.stats.passes
        rejected += answer.finished.stats.rejected_prediction_tokens
    assert after < 0.5 * before
    assert rejected > 0


@st.composite
def predicted(draw: st.DrawFn, request_id: str) -> Request:
    """A request, and a text that may be much like its answer."""
    fields: dict[str, Any] = draw(samplings())
    fields |= {"ignore_eos": draw(st.booleans()), "stop_token_ids": draw(st.sampled_from(((), (20,), (7, 8, 9))))}
    fields |= {"max_tokens": draw(st.integers(1, 40)), "block_length": draw(st.integers(2, 16))}
    fields["include_drafts"] = draw(st.booleans())
    mode = draw(st.sampled_from(MODES))
    return ask(request_id, prompt_of(draw(st.integers(0, 1)), draw(st.sampled_from((0, 16))), 5), mode, **fields)


def test_no_prediction_changes_an_answer(tiny_engine: MakeEngine) -> None:
    """Any prediction, at any temperature, with penalties and stop tokens, in company, in a pool that preempts."""
    seen = {"accepted": 0, "rejected": 0, "preempted": 0}

    @settings(
        max_examples=12, derandomize=True, deadline=None, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example, HealthCheck.data_too_large],
    )  # fmt: skip
    @given(st.data())
    def check(data: st.DataObject) -> None:
        requests = [data.draw(predicted(f"r{i}")) for i in range(data.draw(st.integers(2, 4)))]
        plain = {each.request_id: drive(tiny_engine(), [each])[each.request_id] for each in requests}
        dice = random.Random(data.draw(st.integers(0, 5)))
        visits = []
        for i, each in enumerate(requests):
            share = data.draw(st.sampled_from((0.0, 0.1, 0.4, 1.0)))
            guess = edited(plain[each.request_id].tokens, dice, share) + [dice.choice((20, 30, 40))] * dice.randint(
                0, 5
            )
            visits.append(Visit(predicting(each, guess), i))
        answers = drive(tiny_engine(**TIGHT), visits)
        for each in requests:
            answer = answers[each.request_id]
            assert answer.outcome == plain[each.request_id].outcome, each
            seen["accepted"] += answer.finished.stats.accepted_prediction_tokens
            seen["rejected"] += answer.finished.stats.rejected_prediction_tokens
            seen["preempted"] += answer.finished.stats.preemptions

    check()
    assert min(seen.values()) > 0, seen


@pytest.mark.parametrize("name", GRAMMARS)
@pytest.mark.parametrize("mode", MODES)
def test_a_prediction_changes_no_answer_under_a_grammar(text_engine: MakeEngine, name: str, mode: str) -> None:
    """Predictions that the grammar refuses, in part or from the first token on."""
    grammar: Grammar = GRAMMARS[name][0]
    dice, accepted = random.Random(1), 0
    for seed in range(2):
        request = ask(
            "r", [40, 41, 42], mode, grammar=grammar, max_tokens=40, temperature=0.8, seed=seed, logit_bias=CLOSING
        )
        plain = drive(text_engine(), [request])["r"]
        for share in (0.1, 1.0):
            answer = drive(text_engine(), [predicting(request, edited(plain.tokens, dice, share) or [50])])["r"]
            assert answer.outcome == plain.outcome
            accepted += answer.finished.stats.accepted_prediction_tokens
    assert accepted > 0 or name in ("choice", "object"), "the answers of these are a token or two"


def test_log_probabilities_come_with_predicted_tokens(tiny_engine: MakeEngine) -> None:
    request = ask("r", prompt_of(0, 0, 9), "ar", max_tokens=30, logprobs=2)
    plain = drive(tiny_engine(), [request])["r"]
    answer = drive(tiny_engine(), [predicting(request, plain.tokens)])["r"]

    def scores(given: Answer) -> list[tuple[int, float]]:
        return [
            (entry.token_id, round(entry.logprob, 9))
            for event in given.events
            for entry in getattr(event, "logprobs", None) or []
        ]

    assert len(scores(plain)) == 30
    assert scores(answer) == scores(plain)


def test_auto_drafts_from_a_prompt_that_the_answer_repeats(builtin_engine: MakeEngine) -> None:
    """A conversation in which the same was asked before: quotations are cheap, and nothing else is different."""
    before = after = 0
    for question in prompt_ids(3):
        said = drive(builtin_engine(), [ask("r", question, "ar", max_tokens=64)])["r"]
        again = [*question, *said.tokens, said.finished.stop_token_id or 2, *question[1:]]
        asked = {mode: ask("r", again, mode, max_tokens=64, block_length=32) for mode in ("ar", "auto")}
        plain, copying = (drive(builtin_engine(), [asked[mode]])["r"] for mode in ("ar", "auto"))
        alone = drive(without_prompts(builtin_engine()), [asked["auto"]])["r"]
        assert plain.outcome == alone.outcome == copying.outcome
        before, after = before + alone.finished.stats.passes, after + copying.finished.stats.passes
    assert after < 0.8 * before


def test_no_prompt_changes_an_answer_of_auto(tiny_engine: MakeEngine) -> None:
    """Prompts of few tokens, which every answer repeats in part."""
    dice, accepted = random.Random(8), 0
    for seed in range(6):
        prompt = [dice.choice((20, 30, 40)) for _ in range(dice.randint(4, 60))]
        fields: dict[str, Any] = {"max_tokens": 40, "temperature": 0.9, "seed": seed, "logit_bias": NARROW}
        plain = drive(tiny_engine(), [ask("r", prompt, "ar", **fields)])["r"]
        answer = drive(tiny_engine(), [ask("r", prompt, "auto", **fields)])["r"]
        assert answer.outcome == plain.outcome
        accepted += answer.finished.stats.accepted_draft_tokens
    assert accepted > 0


def test_the_builtin_model_repeats_a_prediction_in_few_passes(builtin_engine: MakeEngine) -> None:
    """In float32, as served."""
    request = ask("r", prompt_ids(1)[0], "ar", max_tokens=64)
    plain = drive(builtin_engine(), [request])["r"]
    answer = drive(builtin_engine(), [predicting(request, plain.tokens)])["r"]
    assert answer.outcome == plain.outcome
    assert answer.finished.stats.passes <= 1 + len(plain.tokens) // 32


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "diffusion", "prediction_token_ids": [7]}, "'prediction' cannot be used with decoding 'diffusion'"),
        ({"mode": "infill", "suffix_token_ids": [8], "prediction_token_ids": [7]}, "with decoding 'infill'"),
        ({"mode": "ar", "prediction_token_ids": [7, 96]}, "prediction holds token id 96"),
        ({"mode": "ar", "prediction_token_ids": [-1]}, "prediction holds token id -1"),
        ({"mode": "auto", "prediction_token_ids": [5]}, "prediction holds token id 5"),
    ],
)
def test_a_prediction_that_cannot_be_used_is_refused(
    tiny_engine: MakeEngine, fields: dict[str, Any], message: str
) -> None:
    mode = fields.pop("mode")
    with pytest.raises(RequestError, match=message) as refusal:
        tiny_engine().add(ask("r", [10, 11], mode, **fields))
    assert refusal.value.param == "prediction"
