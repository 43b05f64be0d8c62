"""One choice while it forms. If it fails, usage, stop strings or log-probabilities tell something that is not so."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.events import Finished, GenerationStats, TokenLogprob, TokensSettled
from engine.request import Request, SamplingParams
from server.generation.choice import ChoiceState
from server.generation.job import Choice, Job
from tests.fakes import INFO, builtin_tokenizer, encode

TOKENIZER = builtin_tokenizer()
TEXT = "Once upon a time there was an owl. She found a coin. It was old."
IDS = encode(TEXT)
END = INFO.end_token_ids[0]


def job(*, stops: tuple[str, ...] = (), min_tokens: int = 0, **fields: Any) -> Job:
    request = Request(
        request_id="r", prompt_token_ids=[9], max_tokens=100, sampling=SamplingParams(min_tokens=min_tokens)
    )
    values: dict[str, Any] = {
        "id": "cmpl-1", "endpoint": "completions", "model": "m", "created": 0, "choices": (Choice(request, 0),),
        "stops": stops, "include_stop": False, "end_token_ids": frozenset(INFO.end_token_ids),
        "told_token_ids": frozenset(), "grammar": None, "seed": 0, "decoding": "ar", "logprobs": None, "stream": None,
    }  # fmt: skip
    return Job(**(values | fields))


def run(made: Job, pieces: list[list[int]], *, stop_token: int | None = END) -> ChoiceState:
    """Feeds the answer's tokens in pieces, as a mode that settles so many at once would, and its end."""
    state, count = ChoiceState(0, made, TOKENIZER), 0
    for piece in pieces:
        count += len(piece)
        scores = [TokenLogprob(token, -0.5, []) for token in piece]
        stats = GenerationStats(completion_tokens=count)
        state.feed(TokensSettled(request_id="r", token_ids=piece, stats=stats, logprobs=scores))
    ended = GenerationStats(completion_tokens=count + (stop_token is not None))
    reason = "length" if stop_token is None else "stop"
    state.feed(Finished(request_id="r", reason=reason, stats=ended, stop_token_id=stop_token))
    return state


def cut(ids: list[int], widths: list[int]) -> list[list[int]]:
    pieces, at = [], 0
    for width in [*widths, len(ids)]:
        if ids[at : at + width]:
            pieces.append(ids[at : at + width])
        at += width
    return pieces


@given(st.lists(st.integers(1, 16), max_size=20), st.sampled_from([".", "owl", " coin. It", "nowhere"]))
@settings(deadline=None)
def test_usage_is_the_same_however_many_tokens_settle_at_once(widths: list[int], stop: str) -> None:
    """Otherwise a client pays for tokens behind a stop string that it never sees, and more in one mode than another."""
    plain = run(job(stops=(stop,)), cut(IDS, [1] * len(IDS)))
    wide = run(job(stops=(stop,)), cut(IDS, widths))
    assert wide.text == plain.text
    assert wide.stats.completion_tokens == plain.stats.completion_tokens
    if stop in TEXT:
        assert len(TOKENIZER.decode(IDS[: plain.stats.completion_tokens])) >= TEXT.index(stop) + len(stop)
        assert len(TOKENIZER.decode(IDS[: plain.stats.completion_tokens - 1])) < TEXT.index(stop) + len(stop)
    else:
        assert plain.stats.completion_tokens == len(IDS) + 1, "the end token counts"


def test_a_stop_string_before_the_least_tokens_does_not_end_the_answer() -> None:
    first = TOKENIZER.decode(IDS).index(".") + 1
    tokens = next(n for n in range(len(IDS)) if len(TOKENIZER.decode(IDS[:n])) >= first)
    assert run(job(stops=(".",), min_tokens=tokens - 1), [IDS]).text + "." == TEXT[:first]
    assert run(job(stops=(".",), min_tokens=tokens), [IDS]).text + "." == TEXT[: TEXT.index(".", first) + 1]


@pytest.mark.parametrize(
    ("fields", "stop_token", "told"),
    [
        ({"stops": ("owl", "coin")}, END, "owl"),
        ({"told_token_ids": frozenset({77})}, 77, 77),
        ({"told_token_ids": frozenset({77})}, END, None),
        ({}, None, None),
    ],
)
def test_what_ended_the_answer_is_told(fields: dict[str, Any], stop_token: int | None, told: object) -> None:
    """vLLM's stop_reason: clients with several stop strings need to know which one it was."""
    state = run(job(**fields), [IDS], stop_token=stop_token)
    assert state.stop_reason == told
    delta = state.take()
    assert delta is not None
    assert delta.stop_reason == told


def test_the_stop_string_is_shown_where_that_was_asked_for() -> None:
    state = run(job(stops=("owl",), include_stop=True), [IDS])
    assert state.text == TEXT[: TEXT.index("owl") + 3]
