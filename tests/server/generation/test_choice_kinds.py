"""One choice of an answer, with tokenizers that are not byte-level."""

from __future__ import annotations

import pytest

from engine.events import DraftUpdated, Finished, TokenLogprob, TokensSettled
from engine.request import Request
from server.generation.choice import ChoiceState, ScoredToken
from server.generation.job import Choice, EndpointName, Job
from tests.fakes import stats_of
from tests.server.text.test_tokenizer_kinds import RUST, TOKENIZERS

NAMES = ["byte_fallback", "metaspace_bytes", "unigram"]


def ids_of(name: str, text: str) -> list[int]:
    ids: list[int] = RUST[name].encode(text, add_special_tokens=False).ids
    return ids


def choice_of(name: str, prompt: list[int], endpoint: EndpointName, stops: tuple[str, ...] = ()) -> ChoiceState:
    request = Request(request_id="r", prompt_token_ids=prompt, max_tokens=100)
    job = Job(
        id="j", endpoint=endpoint, model="m", created=0, choices=(Choice(request, 0),), stops=stops, include_stop=False,
        end_token_ids=frozenset({2}), told_token_ids=frozenset(), grammar=None, seed=0, decoding="ar", logprobs=0,
        stream=None,
    )  # fmt: skip
    return ChoiceState(0, job, TOKENIZERS[name])


def say(state: ChoiceState, ids: list[int]) -> tuple[str, list[ScoredToken]]:
    """Text and scored tokens of an answer that comes token by token."""
    request = Request(request_id="r", prompt_token_ids=[], max_tokens=100)
    text, tokens = "", []
    for count, token in enumerate(ids, 1):
        scores = [TokenLogprob(token, -1.0, [])]
        state.feed(
            TokensSettled(request_id="r", token_ids=[token], stats=stats_of(request, count, count), logprobs=scores)
        )
        if (delta := state.take()) is not None:
            text, tokens = text + delta.text, tokens + delta.tokens
    state.feed(Finished(request_id="r", reason="length", stats=stats_of(request, len(ids), len(ids))))
    if (delta := state.take()) is not None:
        text, tokens = text + delta.text, tokens + delta.tokens
    return text, tokens


@pytest.mark.parametrize("name", NAMES)
def test_a_completion_keeps_the_space_before_its_first_word(name: str) -> None:
    """Prompt and answer are one text, which clients put together themselves."""
    text, tokens = say(choice_of(name, [1, *ids_of(name, "x")], "completions"), ids_of(name, "hello world"))
    assert text == " hello world"
    assert [token.offset for token in tokens] == [0, 6]
    alone, _ = say(choice_of(name, [1], "completions"), ids_of(name, "hello world"))
    assert alone == "hello world"


@pytest.mark.parametrize("name", NAMES)
def test_a_chats_answer_is_a_text_of_its_own(name: str) -> None:
    text, _ = say(choice_of(name, [1, *ids_of(name, "x")], "chat"), ids_of(name, "hello world"))
    assert text == "hello world"


@pytest.mark.parametrize("name", ["byte_fallback", "byte_level"])
def test_log_probabilities_come_with_the_text_of_their_tokens(name: str) -> None:
    """Text between the offsets is the token's, where tokens are whole characters; a stop string ends both."""
    ids = ids_of(name, "x\n\n日本\nhello").copy()
    whole, tokens = say(choice_of(name, [], "chat"), ids)
    assert len(tokens) == len(ids)
    assert [token.offset for token in tokens] == sorted(token.offset for token in tokens)
    for token, after in zip(tokens, [*tokens[1:], None], strict=True):
        shown = TOKENIZERS[name].texts.display(token.scores.token_id)
        piece = whole[token.offset : None if after is None else after.offset]
        assert "\ufffd" in shown or token is tokens[0] or piece == shown
    cut, kept = say(choice_of(name, [], "chat", ("本",)), ids)
    assert cut == whole[: whole.index("本")]
    assert all(token.offset < len(cut) for token in kept)


@pytest.mark.parametrize("name", NAMES)
def test_a_draft_has_the_spaces_between_its_words(name: str) -> None:
    state = choice_of(name, [1, *ids_of(name, "x")], "completions")
    words = ids_of(name, "hello world")
    state.feed(
        DraftUpdated(
            request_id="r",
            block=0,
            step=1,
            token_ids=[words[0], None, words[1]],
            confidences=[0.5, None, 0.5],
            length=3,
        )
    )
    draft = state.draft()
    assert draft is not None
    assert draft.text == " hello▒ world"
    assert [token.text for token in draft.tokens] == [" hello", None, " world"]
