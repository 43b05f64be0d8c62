"""Structured answers of `diffusion`: text of the grammar whenever they end by themselves, and the reference's tokens.

If one fails, a client that parses the answer breaks on it, waits for ever, or gets other text under load.
"""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema_rs
import pytest

from engine.grammar.state import NO_TOKEN_FITS, TOO_COMPLEX
from engine.request import Grammar
from tests.conftest import MakeEngine
from tests.engine.decoding.harness import logprobs_of
from tests.engine.driving import Answer, Visit, ask, drive
from tests.reference.grammars import CLOSING, GRAMMARS, choice, random_schema, regex, schema, text_of
from tests.reference.prompts import builtin_tokenizer, prompt_ids

PROMPT = [40, 41, 42]


def one(make: MakeEngine, grammar: Grammar, **fields: Any) -> Answer:
    request = ask("r", PROMPT, "diffusion", grammar=grammar, **({"max_tokens": 60} | fields))
    return drive(make(), [request])["r"]


def crowd() -> list[Any]:
    """Requests of every kind of grammar in `diffusion`, with and without neighbours that have none."""
    requests = []
    for i in range(12):
        grammar = list(GRAMMARS.values())[i % 4][0] if i % 5 else None
        mode = ("diffusion", "diffusion", "speculative", "diffusion")[i % 4] if grammar else ("diffusion", "ar")[i % 2]
        requests.append(
            ask(f"r{i}", PROMPT + [30 + i] * (i % 5), mode, block_length=(4, 8, 16)[i % 3], max_tokens=40, seed=i,
                grammar=grammar, temperature=i % 2 * 0.8, threshold=(0.9, 0.1, None)[i % 3], include_drafts=i % 4 == 1,
                logit_bias=CLOSING if i % 2 else {}, logprobs=i % 3 or None, presence_penalty=i % 4 * 0.3)
        )  # fmt: skip
    return requests


@pytest.mark.parametrize("shared", [False, True], ids=["separate", "shared"])
def test_company_and_preemption_never_change_the_answer(text_engine: MakeEngine, shared: bool) -> None:
    """Structured output would break under load, when sequences are preempted, or spoil its neighbours' text."""
    requests = crowd()
    alone = {
        request.request_id: drive(text_engine(shared_commit=shared), [request])[request.request_id]
        for request in requests
    }
    tight = {
        "kv_cache_tokens": 112,
        "page_size": 4,
        "max_model_len": 64,
        "max_block_length": 16,
        "max_batch_tokens": 64,
    }
    for pool in ({}, tight | {"max_infill_window": 24}):
        answers = drive(text_engine(shared_commit=shared, **pool), [Visit(each, i) for i, each in enumerate(requests)])
        preemptions = sum(answer.finished.stats.preemptions for answer in answers.values())
        assert preemptions or not pool, "nothing was preempted"
        for name, answer in answers.items():
            assert answer.outcome == alone[name].outcome, name


def test_answers_of_random_schemas_are_valid(builtin_engine: MakeEngine) -> None:
    """A client's validator would refuse what the server calls structured. In random company, on random schedules."""
    rng, prompts, ended = random.Random(11), prompt_ids(), 0
    for i in range(2):
        wanted = [random_schema(rng) for _ in range(10)]
        requests = [
            ask(f"{j}", prompts[(i + j) % len(prompts)], "diffusion", grammar=schema(form), max_tokens=64, seed=j,
                temperature=rng.choice((0.0, 0.7, 1.3)), block_length=rng.choice((4, 8, 16, 32)),
                threshold=rng.choice((0.9, 0.5, 0.1, None)))
            for j, form in enumerate(wanted)
        ]  # fmt: skip
        visits = [Visit(request, rng.randrange(10)) for request in requests]
        answers = drive(builtin_engine(prefix_caching=False, shared_commit=bool(i % 2)), visits)
        for j, form in enumerate(wanted):
            answer = answers[f"{j}"]
            if answer.finished.reason == "stop":
                ended += 1
                jsonschema_rs.validate(form, json.loads(builtin_tokenizer().decode(answer.tokens)))
            else:
                assert (answer.finished.reason, len(answer.tokens)) == ("length", 64)
    assert ended > 10


def test_every_step_settles_a_token(text_engine: MakeEngine) -> None:
    """An answer would take more passes than plain decoding, or never end, where the model's drafts are refused."""
    for name, (grammar, _) in GRAMMARS.items():
        for threshold in (1e-6, None):
            answer = one(text_engine, grammar, threshold=threshold, temperature=1.3, block_length=16, max_tokens=32)
            stats = answer.finished.stats
            assert stats.denoising_steps <= stats.completion_tokens, name


@pytest.mark.parametrize("shared", [False, True], ids=["separate", "shared"])
@pytest.mark.parametrize("block_length", [2, 4, 16])
def test_a_text_that_nothing_may_follow_ends(text_engine: MakeEngine, block_length: int, shared: bool) -> None:
    """A request would hang, or go on for ever, when its grammar is complete and its end tokens are banned."""
    for fields in ({"ignore_eos": True}, {"min_tokens": 50}):
        for seed in range(6):
            answer = drive(
                text_engine(shared_commit=shared),
                [ask("r", PROMPT, "diffusion", grammar=choice("abab", "yes", "a: 0.5"), block_length=block_length,
                     max_tokens=60, temperature=1.0, seed=seed, **fields)],
            )["r"]  # fmt: skip
            assert text_of(answer.tokens) in ("abab", "yes", "a: 0.5")
            assert (answer.finished.reason, answer.finished.stop_token_id) == ("stop", None)


@pytest.mark.parametrize("shared", [False, True], ids=["separate", "shared"])
def test_a_text_that_nothing_can_continue_ends_with_an_error(text_engine: MakeEngine, shared: bool) -> None:
    """A character that the model cannot write would make a request loop, or end as if half its text were an answer."""
    for block_length in (2, 3, 8):
        make = text_engine(shared_commit=shared)
        request = ask("r", PROMPT, "diffusion", grammar=regex("[ab]{5}é"), block_length=block_length)
        answer = drive(make, [request])["r"]
        assert (answer.finished.reason, answer.finished.error) == ("error", NO_TOKEN_FITS)
        assert len(text_of(answer.tokens)) == 5


def test_limits_of_the_library_end_the_request_alone(text_engine: MakeEngine) -> None:
    """A grammar too large to follow would take its neighbours with it, or be tried again for ever."""
    grammar = schema({"type": "object", "properties": {f"{'ab' * (i % 7)}{i}": {} for i in range(700)}})
    neighbour = ask("good", PROMPT, "diffusion", max_tokens=12)
    expected = drive(text_engine(), [neighbour])["good"].outcome
    plain = drive(text_engine(), [ask("r", PROMPT, "ar", grammar=grammar, max_tokens=60)])["r"]
    answers = drive(text_engine(), [ask("bad", PROMPT, "diffusion", grammar=grammar, max_tokens=60), neighbour])
    assert answers["good"].outcome == expected
    assert answers["bad"].outcome[1:] == plain.outcome[1:] == ("error", None, TOO_COMPLEX)


def test_log_probabilities_are_of_the_tokens_that_were_given(text_engine: MakeEngine) -> None:
    """A client would get no score, or another token's, for what the grammar put in the place of a draft."""
    for threshold in (0.9, 1e-6):
        answer = one(text_engine, GRAMMARS["regex"][0], threshold=threshold, logprobs=2, logit_bias=CLOSING)
        scores = logprobs_of(answer)
        assert [score.token_id for score in scores] == answer.tokens
        assert all(score.logprob <= 0 for score in scores)


def test_schemas_that_the_model_knows_cost_no_more_passes_than_free_text(
    builtin_engine: MakeEngine, record_property: Any
) -> None:
    """Structured output would lose what makes the mode fast, on the very work that it does best."""
    text = builtin_tokenizer()
    form = {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {"item": {"type": "string"}, "count": {"type": "integer"}},
            "required": ["item", "count"],
        },
    }
    questions = ["89 books, 64 oranges, 88 apples", "12 coins, 50 stamps", "31 keys, 77 shells, 20 plums"]
    prompts = [
        text.encode(f"<|bos|><|user|>Turn this list into JSON: {question}.<|assistant|>", add_special_tokens=False).ids
        for question in questions
    ]
    passes = {}
    for name, grammar in (("free", None), ("schema", schema(form))):
        requests = [
            ask(f"{i}", ids, "diffusion", grammar=grammar, max_tokens=100, block_length=16)
            for i, ids in enumerate(prompts)
        ]
        answers = drive(builtin_engine(), requests)
        passes[name] = sum(answer.finished.stats.passes for answer in answers.values())
        record_property(f"passes, {name}", passes[name])
        assert all(answer.finished.reason == "stop" for answer in answers.values())
    assert passes["schema"] <= 1.2 * passes["free"]
