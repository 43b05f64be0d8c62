"""Both forms of partially denoised text end in exactly the text that a client who does not stream is given."""

from __future__ import annotations

import itertools
from typing import Any

import httpx
import pytest

from tests.clients.conftest import MODES, STORY, SUM, TALE
from tests.http_helpers import ask, delta_of, events

MASK = "\u2592"
PROMPTS: dict[str, dict[str, Any]] = {
    "completions": {"prompt": STORY},
    "chat": {"messages": [{"role": "user", "content": TALE}]},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "sampled": {"temperature": 1, "seed": 11, "max_tokens": 48},
    "greedy with stops": {"temperature": 0, "max_tokens": 48, "stop": [" the ", " = 1"]},
}

every_mode = pytest.mark.parametrize("mode", MODES)
every_endpoint = pytest.mark.parametrize("endpoint", PROMPTS)
every_setting = pytest.mark.parametrize("setting", SETTINGS)


def whole_text(http: httpx.Client, body: dict[str, Any]) -> tuple[str, str]:
    """Text and finish reason without streaming."""
    choice = ask(http, body).json()["choices"][0]
    return (choice["text"] if "text" in choice else choice["message"]["content"]), choice["finish_reason"]


def stream(http: httpx.Client, body: dict[str, Any], **extra: Any) -> list[dict[str, Any]]:
    answer = ask(http, {**body, "stream": True, **extra})
    assert answer.status_code == 200, answer.text
    return events(answer.text)


@every_mode
@every_endpoint
@every_setting
def test_drafts_stand_beside_a_stream_that_only_appends(
    http: httpx.Client, endpoint: str, mode: str, setting: str
) -> None:
    """Who adds up the deltas and ignores the drafts has the answer; who shows the drafts never loses settled text."""
    body = {**PROMPTS[endpoint], **SETTINGS[setting], "decoding": mode}
    text, reason = whole_text(http, body)
    choices = [chunk["choices"][0] for chunk in stream(http, body, stream_options={"include_drafts": True})]
    assert "".join(delta_of(choice) for choice in choices) == text
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == [reason]
    drafts = [choice["draft"] for choice in choices if choice.get("draft")]
    if setting == "sampled":  # a stop string may be hit before there is a draft
        assert bool(drafts) == (mode != "ar"), "autoregressive decoding has no drafts, every other mode has"
    for draft in drafts:
        assert draft["masked"] == sum(token["text"] is None for token in draft["tokens"])
        assert draft["length"] >= len(draft["tokens"])
        assert all(0 <= (token["confidence"] or 0) <= 1 for token in draft["tokens"])
    assert choices[-1].get("draft") is None, "a finished answer has nothing unsettled"
    assert MASK not in text


@every_mode
@every_endpoint
@every_setting
def test_mercurys_form_replaces_and_ends_in_the_answer(
    http: httpx.Client, endpoint: str, mode: str, setting: str
) -> None:
    body = {**PROMPTS[endpoint], **SETTINGS[setting], "decoding": mode}
    text, reason = whole_text(http, body)
    *chunks, closing = stream(http, body, diffusing=True)
    assert delta_of(chunks[-1]["choices"][0]) == text
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + [reason]
    assert delta_of(closing["choices"][0]) == ""
    metas = [chunk["diffusion_meta"] for chunk in chunks]
    assert all(meta["diffusion_content"] is True for meta in metas)
    progress = [meta["diffusion_progress"] for meta in metas]
    assert progress == sorted(progress)
    assert progress[0] >= 0
    assert progress[-1] == 1.0
    if mode == "diffusion" and setting == "sampled":
        shown = [delta_of(chunk["choices"][0]) for chunk in chunks]
        assert any(MASK in state for state in shown), "the point of this form is to see text that is not done"


@every_endpoint
def test_text_of_a_block_arrives_before_the_block_is_done(http: httpx.Client, endpoint: str) -> None:
    """A reader waits for settled text, not for the last mask of a block."""
    body = {**PROMPTS[endpoint], "temperature": 0, "max_tokens": 60, "decoding": "diffusion", "block_length": 32}
    choices = [chunk["choices"][0] for chunk in stream(http, body, stream_options={"include_drafts": True})]
    early = [choice for choice in choices if delta_of(choice) and choice.get("draft") and choice["draft"]["masked"] > 0]
    assert early, "no text came while its block still had masks"
    plain = stream(http, body)
    assert len(plain) > 3, f"60 tokens in blocks of 32 came in {len(plain)} chunks: one a block"


@every_endpoint
def test_what_was_settled_is_never_taken_back(http: httpx.Client, endpoint: str) -> None:
    """In Mercury's form every state begins with the text that was settled in the state before."""
    body = {**PROMPTS[endpoint], "temperature": 0, "max_tokens": 60, "decoding": "diffusion"}
    states = [delta_of(chunk["choices"][0]) for chunk in stream(http, body, diffusing=True)[:-1]]
    for before, after in itertools.pairwise(states):
        settled = before.partition(MASK)[0]
        assert after.startswith(settled)


@every_mode
def test_several_answers_in_one_stream_stay_apart(http: httpx.Client, mode: str) -> None:
    body = {"prompt": [SUM, STORY], "n": 2, "temperature": 1, "seed": 3, "max_tokens": 24, "decoding": mode}
    whole = [choice["text"] for choice in ask(http, body).json()["choices"]]
    appended, replaced = [""] * 4, [""] * 4
    for chunk in stream(http, body, stream_options={"include_drafts": True}):
        for choice in chunk["choices"]:
            appended[choice["index"]] += choice["text"]
    for chunk in stream(http, body, diffusing=True)[:-1]:
        for choice in chunk["choices"]:
            replaced[choice["index"]] = choice["text"]
    assert appended == replaced == whole


def test_a_gap_shows_itself_filling(http: httpx.Client) -> None:
    body = {"prompt": "Once upon a time there was", "suffix": " and they were friends.", "max_tokens": 16,
            "temperature": 0}  # fmt: skip
    text, _ = whole_text(http, body)
    choices = [chunk["choices"][0] for chunk in stream(http, body, stream_options={"include_drafts": True})]
    assert "".join(choice["text"] for choice in choices) == text
    assert sum(bool(choice.get("draft")) for choice in choices) > 3
    assert stream(http, body, diffusing=True)[-2]["choices"][0]["text"] == text


@every_mode
def test_characters_of_several_tokens_come_whole(http: httpx.Client, mode: str) -> None:
    """Bytes of a character arrive in different tokens; a client must never see half of one."""
    owl = "\U0001f989"
    ids = http.post("/tokenize", json={"prompt": owl, "add_special_tokens": False}).json()["tokens"]
    assert len(ids) > 1
    bias = {str(token): 100 for token in ids}
    body = {"prompt": SUM, "logit_bias": bias, "max_tokens": 24, "seed": 5, "temperature": 1, "decoding": mode,
            "ignore_eos": True}  # fmt: skip
    text, _ = whole_text(http, body)
    appended = "".join(delta_of(chunk["choices"][0]) for chunk in stream(http, body))
    assert appended == text
    assert delta_of(stream(http, body, diffusing=True)[-2]["choices"][0]) == text


def test_the_two_forms_cannot_be_mixed(http: httpx.Client) -> None:
    both = ask(http, {"prompt": SUM, "stream": True, "diffusing": True, "stream_options": {"include_drafts": True}})
    assert both.status_code == 400
    assert both.json()["error"]["param"] == "diffusing"
    assert ask(http, {"prompt": SUM, "diffusing": True}).status_code == 400
    assert ask(http, {"prompt": SUM, "stream_options": {"include_drafts": True}}).status_code == 400
