"""Structured answers: text of the grammar, the same in every exact mode, whoever else is being served.

If one fails, a client that parses the answer breaks on it, gets other text from one mode than from another, or waits
for an answer that never ends.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import jsonschema_rs
import pytest

from engine.grammar.state import NO_TOKEN_FITS, TOO_COMPLEX
from engine.request import Grammar
from tests.conftest import MakeEngine
from tests.engine.driving import Answer, Visit, ask, drive
from tests.reference.grammars import (
    CLOSING,
    GRAMMARS,
    choice,
    random_schema,
    regex,
    schema,
    text_of,
)
from tests.reference.prompts import builtin_tokenizer, prompt_ids

PROMPT = [40, 41, 42]
MODES = [("speculative", 2), ("speculative", 5), ("speculative", 8), ("speculative", 16), ("auto", 16)]


def one(make: MakeEngine, grammar: Grammar, decoding: str = "ar", **fields: Any) -> Answer:
    return drive(make(), [ask("r", PROMPT, decoding, grammar=grammar, **({"max_tokens": 60} | fields))])["r"]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", GRAMMARS)
def test_mode_never_changes_the_answer(text_engine: MakeEngine, name: str, temperature: float) -> None:
    """The same request would get other structured text when the server speculates, and perhaps invalid text."""
    grammar, is_valid = GRAMMARS[name]
    finished = 0
    options: list[dict[str, Any]] = [
        {"min_tokens": 9}, {"frequency_penalty": 0.8, "repetition_penalty": 1.2}, {"top_k": 3, "top_p": 0.9},
        {"logit_bias": CLOSING, "logprobs": 2}, {"ignore_eos": True},
    ]  # fmt: skip
    for seed, fields in enumerate(options):
        fields |= {"grammar": grammar, "max_tokens": 40, "seed": seed, "temperature": temperature}
        requests = [
            ask(f"{mode} {length}", PROMPT, mode, block_length=length, cache_salt=f"{mode}{length}", **fields)
            for mode, length in [("ar", 2), *MODES]
        ]
        answers = drive(text_engine(), requests)
        plain = answers["ar 2"]
        if plain.finished.reason == "stop":
            finished += 1
            assert is_valid(text_of(plain.tokens)), text_of(plain.tokens)
        else:
            assert plain.finished.reason == "length", plain.finished
        for way, answer in answers.items():
            assert answer.outcome == plain.outcome, (way, fields)
    assert finished, "no answer came to its end: nothing was checked"


def test_company_and_preemption_never_change_the_answer(text_engine: MakeEngine) -> None:
    """Structured output would break under load, when sequences are preempted, or spoil its neighbours' text."""
    requests = []
    for i in range(12):
        grammar = list(GRAMMARS.values())[i // 2 % 4][0] if i % 3 else None
        decoding = ("ar", "speculative", "auto", "speculative", "diffusion" if grammar is None else "auto")[i % 5]
        requests.append(
            ask(f"r{i}", PROMPT + [30 + i] * (i % 5), decoding, block_length=4 + i, max_tokens=40, grammar=grammar,
                temperature=i % 2 * 0.8, seed=i)
        )  # fmt: skip
    alone = {request.request_id: drive(text_engine(), [request])[request.request_id] for request in requests}
    for shared, pool in ((100, 2048), (0, 112)):
        tight = text_engine(
            kv_cache_tokens=pool, page_size=4, shared_verify_below=shared, max_model_len=64, max_block_length=16,
            max_batch_tokens=64, max_infill_window=24,
        )  # fmt: skip
        answers = drive(tight, [Visit(request, i) for i, request in enumerate(requests)])
        preemptions = sum(answer.finished.stats.preemptions for answer in answers.values())
        assert preemptions or pool > 1000, "nothing was preempted"
        for name, answer in answers.items():
            assert answer.outcome == alone[name].outcome, name


@pytest.mark.parametrize(("decoding", "block_length"), [("ar", 8), ("speculative", 8), ("auto", 16)])
def test_a_text_that_nothing_may_follow_ends(text_engine: MakeEngine, decoding: str, block_length: int) -> None:
    """A request would hang, or go on for ever, when its grammar is complete and its end tokens are banned."""
    for fields in ({"ignore_eos": True}, {"min_tokens": 50}):
        answer = one(text_engine, choice("abab", "yes"), decoding, block_length=block_length, **fields)
        assert text_of(answer.tokens) in ("abab", "yes")
        assert (answer.finished.reason, answer.finished.stop_token_id) == ("stop", None)


@pytest.mark.parametrize(("decoding", "block_length"), [("ar", 8), ("speculative", 8), ("auto", 16)])
def test_a_text_that_nothing_can_continue_ends_with_an_error(
    text_engine: MakeEngine, decoding: str, block_length: int
) -> None:
    """A character that the model cannot write would make a request loop, or end as if half its text were an answer."""
    answer = one(text_engine, regex("[ab]{5}é"), decoding, block_length=block_length)
    assert (answer.finished.reason, answer.finished.error) == ("error", NO_TOKEN_FITS)
    assert len(text_of(answer.tokens)) == 5


def test_limits_of_the_library_end_the_request_alike_in_all_modes(text_engine: MakeEngine) -> None:
    """A grammar too large to follow would take its neighbours with it, or fail only when the server speculates."""
    grammar = schema({"type": "object", "properties": {f"{'ab' * (i % 7)}{i}": {} for i in range(700)}})
    neighbour = ask("good", PROMPT, "ar", max_tokens=12)
    expected = drive(text_engine(), [neighbour])["good"].outcome
    outcomes = []
    for decoding in ("ar", "speculative", "auto"):
        answers = drive(text_engine(), [ask("bad", PROMPT, decoding, grammar=grammar), neighbour])
        assert answers["good"].outcome == expected
        outcomes.append(answers["bad"].outcome)
    assert outcomes[0][1:] == ("error", None, TOO_COMPLEX)
    assert outcomes.count(outcomes[0]) == 3


def test_a_walk_that_fails_in_the_library_changes_nothing(
    text_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafts that plain decoding never sees would decide whether a request succeeds."""
    from engine.grammar import state as grammar_module

    grammar = regex("[xyz]{40}")  # so narrow that many drafts are right
    plain = one(text_engine, grammar)
    fill, calls = grammar_module._fill, 0

    def failing(matchers: Any, drafts: Any, masks: Any) -> None:
        nonlocal calls
        fill(matchers, drafts, masks)
        if masks.shape[1] > 1:
            calls += 1
            if calls % 2:
                matchers[0].consume_token(5)  # never text: the matcher is beyond repair

    monkeypatch.setattr(grammar_module, "_fill", failing)
    assert one(text_engine, grammar, "speculative").outcome == plain.outcome
    assert calls > 3


# --- the built-in model -----------------------------------------------------------------------------------------------

ITEMS = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"item": {"type": "string"}, "count": {"type": "integer"}},
        "required": ["item", "count"],
        "additionalProperties": False,
    },
}
OTHER = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 1, "maxItems": 4},
        "number": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "tags", "number"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(("wanted", "least"), [(ITEMS, 5.0), (OTHER, 1.5)], ids=["familiar", "unfamiliar"])
def test_speculation_under_a_schema_still_accepts_drafts(
    builtin_engine: MakeEngine, wanted: Any, least: float, record_property: Callable[[str, object], None]
) -> None:
    """Structured output would be served at plain decoding's speed, on the very work that speculates best."""
    text = builtin_tokenizer()
    questions = ["89 books, 64 oranges, 88 apples", "12 coins, 50 stamps", "31 keys, 77 shells, 20 plums"]
    prompts = [
        text.encode(f"<|bos|><|user|>Turn this list into JSON: {question}.<|assistant|>", add_special_tokens=False).ids
        for question in questions
    ]

    def run(decoding: str, temperature: float) -> dict[str, Answer]:
        fields = {"grammar": schema(wanted), "max_tokens": 100, "block_length": 16, "temperature": temperature}
        return drive(builtin_engine(), [ask(f"{i}", ids, decoding, **fields) for i, ids in enumerate(prompts)])

    for temperature in (0.0, 1.0):
        plain, drafted = run("ar", temperature), run("speculative", temperature)
        for name, answer in plain.items():
            assert drafted[name].outcome == answer.outcome
            if wanted is ITEMS:
                assert answer.finished.reason == "stop"
                assert all(set(item) == {"item", "count"} for item in json.loads(text.decode(answer.tokens)))
        stats = [answer.finished.stats for answer in drafted.values()]
        per_round = 1 + sum(s.accepted_draft_tokens for s in stats) / sum(s.blocks for s in stats)
        record_property(f"tokens a round at temperature {temperature}", per_round)
        assert per_round > least, f"{per_round:.2f} tokens a round"


def test_answers_of_random_schemas_are_valid_and_the_same_in_every_mode(builtin_engine: MakeEngine) -> None:
    """A client's validator would refuse what the server calls structured."""
    rng, prompts, complete = random.Random(5), prompt_ids(), 0
    for i in range(12):
        wanted = random_schema(rng)
        fields: dict[str, Any] = {"grammar": schema(wanted), "max_tokens": 64, "temperature": i % 2 * 0.8, "seed": i}
        ways = [("ar", 2), ("speculative", 4), ("speculative", 16), ("auto", 32)]
        requests = [ask(f"{mode} {length}", prompts[i], mode, block_length=length, **fields) for mode, length in ways]
        answers = drive(builtin_engine(prefix_caching=False), requests)
        plain = answers["ar 2"]
        assert all(answer.outcome == plain.outcome for answer in answers.values()), wanted
        if plain.finished.reason == "stop":
            complete += 1
            jsonschema_rs.validate(wanted, json.loads(builtin_tokenizer().decode(plain.tokens)))
    assert complete > 6
