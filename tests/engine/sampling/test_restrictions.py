"""Allowed tokens and banned sequences. If one fails, an answer holds what its request had ruled out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import RequestError
from engine.request import Request, SamplingParams
from engine.sampling.restrictions import apply_restrictions, banned_next
from engine.sequence import Sequence
from tests.conftest import MakeEngine
from tests.engine.driving import ask, drive

TOKENS = st.integers(0, 3)


def sequence(prompt: list[int], answer: list[int], **sampling: object) -> Sequence:
    request = Request(
        request_id="r",
        prompt_token_ids=prompt,
        max_tokens=99,
        sampling=SamplingParams(**sampling),  # type: ignore[arg-type]
    )
    return Sequence(request, frozenset(), 0, token_ids=[*prompt, *answer])


def holds(tokens: list[int], banned: tuple[int, ...]) -> bool:
    return any(tuple(tokens[at : at + len(banned)]) == banned for at in range(len(tokens)))


@given(
    prompt=st.lists(TOKENS, min_size=1, max_size=3),
    answer=st.lists(TOKENS, max_size=5),
    drafts=st.lists(TOKENS, max_size=4),
    banned=st.lists(st.lists(TOKENS, min_size=1, max_size=4).map(tuple), max_size=4).map(tuple),
)
def test_a_token_is_barred_exactly_where_it_would_complete_a_sequence(
    prompt: list[int], answer: list[int], drafts: list[int], banned: tuple[tuple[int, ...], ...]
) -> None:
    """In every row of a verification, after the settled tokens and the drafts before it; the prompt does not count."""
    found = set(banned_next([sequence(prompt, answer, banned_sequences=banned)], [drafts]))
    for row in range(len(drafts) + 1):
        before = [*answer, *drafts[:row]]
        for token in range(4):
            text = [*before, token]
            completes = any(tuple(text[-len(one) :]) == one for one in banned)
            assert ((0, row, token) in found) == completes


def test_only_allowed_tokens_are_left_and_others_answers_are_not_touched() -> None:
    logits = torch.arange(24.0).reshape(2, 2, 6)
    seqs = [sequence([1], [], allowed_token_ids=(4, 2)), sequence([1], [])]
    expected = logits.clone()
    expected[0, :, [0, 1, 3, 5]] = -torch.inf
    apply_restrictions(logits, seqs, None)
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_exact_modes_agree_about_banned_sequences(tiny_engine: MakeEngine, temperature: float) -> None:
    """Pairs and triples of the plain answer are banned, among other requests that ban nothing."""
    engine, prompt = tiny_engine(), [9, 30, 41]
    sampling = {"temperature": temperature, "seed": 5}
    plain = drive(engine, [ask("a", prompt, "ar", max_tokens=40, **sampling)])["a"].tokens
    banned = (tuple(plain[2:4]), tuple(plain[7:10]), tuple(plain[20:22]), (plain[30],))
    found = []
    for mode in ("ar", "speculative", "auto"):
        visits = [
            ask("a", prompt, mode, max_tokens=40, **sampling, banned_sequences=banned),
            ask("b", prompt, mode, max_tokens=40, **sampling),
        ]
        answers = drive(engine, visits)
        found.append(answers["a"].tokens)
        assert answers["b"].tokens == plain
    assert found[0] == found[1] == found[2] != plain
    assert found[0][:3] == plain[:3], "nothing changes before the first banned pair"
    assert not any(holds(found[0], one) for one in banned)


@pytest.mark.parametrize("mode", ["ar", "speculative", "auto", "diffusion"])
def test_an_answer_holds_only_what_is_allowed(tiny_engine: MakeEngine, mode: str) -> None:
    allowed = (11, 40, 52)
    answer = drive(
        tiny_engine(), [ask("a", [9, 30], mode, max_tokens=30, temperature=1.0, seed=3, allowed_token_ids=allowed)]
    )
    assert set(answer["a"].tokens) <= set(allowed)
    assert len(answer["a"].tokens) == 30


@pytest.mark.parametrize(
    ("mode", "sampling", "param"),
    [
        ("ar", {"allowed_token_ids": (10**6,)}, "allowed_token_ids"),
        ("ar", {"allowed_token_ids": (9,), "banned_sequences": ((9,),)}, "allowed_token_ids"),
        ("ar", {"allowed_token_ids": (9, 8), "banned_sequences": ((9,), (9, 8))}, "allowed_token_ids"),
        ("ar", {"banned_sequences": ((-1,),)}, "bad_words"),
        ("diffusion", {"banned_sequences": ((9, 8),)}, "bad_words"),
    ],
)  # fmt: skip
def test_what_leaves_nothing_to_choose_is_refused(
    tiny_engine: MakeEngine, mode: str, sampling: dict[str, object], param: str
) -> None:
    """A pass that finds no token would give a token that was ruled out, or fail the answer half-way."""
    with pytest.raises(RequestError) as refused:
        tiny_engine().add(ask("a", [9, 30], mode, max_tokens=4, **sampling))
    assert refused.value.param == param
