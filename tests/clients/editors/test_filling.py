"""Filling in the middle in Mistral's form and llama.cpp's. If these fail, editors that speak them get no suggestion."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from server.api.fill.response import indented
from tests.http_helpers import events

BEFORE, BEHIND = "Once upon a time there was a", " One evening, Clara went to the forest and found a key."
GAP: dict[str, Any] = {
    "prompt": BEFORE, "suffix": BEHIND, "max_tokens": 12, "temperature": 0, "find_gap_length": False,
}  # fmt: skip
INFILL: dict[str, Any] = {
    "input_prefix": BEFORE, "input_suffix": BEHIND, "n_predict": 12, "temperature": 0, "find_gap_length": False,
}  # fmt: skip


def post(http: httpx.Client, path: str, body: dict[str, Any], **fields: Any) -> Any:
    answer = http.post(path, json={**body, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def completion(http: httpx.Client, **fields: Any) -> Any:
    return post(http, "/v1/completions", GAP, **fields)


def test_all_three_forms_fill_the_same_gap_alike(http: httpx.Client) -> None:
    expected = completion(http)
    fim = post(http, "/v1/fim/completions", GAP)
    text = expected["choices"][0]["text"]
    assert text
    choice = fim["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": text, "tool_calls": None}
    assert choice["text"] == text
    assert fim["usage"]["completion_tokens"] == expected["usage"]["completion_tokens"]
    infill = post(http, "/infill", INFILL)
    assert (infill["content"], infill["stop"], infill["stop_type"]) == (text, True, "limit")
    assert infill["tokens_predicted"] == 12
    assert infill["tokens_evaluated"] == expected["usage"]["prompt_tokens"]


def test_editors_get_as_much_text_as_belongs_into_the_gap(http: httpx.Client) -> None:
    """They ask for 128 tokens whatever the gap. The text is that of a gap of the length that was found."""
    found = completion(http, max_tokens=128, find_gap_length=True)
    [choice], usage = found["choices"], found["usage"]
    length = usage["completion_tokens"]
    assert 1 <= length < 64
    assert choice["finish_reason"] == "stop"
    assert completion(http, max_tokens=length)["choices"][0]["text"] == choice["text"]
    asked = {"max_tokens": 128, "find_gap_length": None}
    fim = post(http, "/v1/fim/completions", GAP, **asked)["choices"][0]
    assert (fim["text"], fim["finish_reason"]) == (choice["text"], "stop")
    infill = post(http, "/infill", INFILL, n_predict=128, find_gap_length=None)
    assert (infill["content"], infill["stop_type"]) == (choice["text"], "eos")
    assert infill["tokens_predicted"] == length
    chunks = events(http.post("/v1/fim/completions", json={**GAP, **asked, "stream": True}).text)
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == choice["text"]


def test_a_completion_fills_what_it_was_asked_for_unless_it_asks_for_more(http: httpx.Client) -> None:
    assert completion(http, find_gap_length=None)["usage"]["completion_tokens"] == 12
    short = completion(http, max_tokens=1, find_gap_length=True)
    assert (short["usage"]["completion_tokens"], short["choices"][0]["finish_reason"]) == (1, "length")
    drafts = {"stream": True, "stream_options": {"include_drafts": True}}
    for fields in ({"suffix": None}, drafts):
        answer = http.post("/v1/completions", json={**GAP, "find_gap_length": True, **fields})
        assert answer.json()["error"]["param"] == "find_gap_length"
    assert http.post("/v1/fim/completions", json={**GAP, "find_gap_length": None, **drafts}).status_code == 200


def test_without_a_suffix_the_prompt_is_continued(http: httpx.Client) -> None:
    text = completion(http, suffix=None)["choices"][0]["text"]
    assert post(http, "/v1/fim/completions", GAP, suffix=None)["choices"][0]["message"]["content"] == text
    assert post(http, "/infill", INFILL, input_suffix="")["content"] == text


def test_streams_add_up(http: httpx.Client) -> None:
    text = completion(http)["choices"][0]["text"]
    chunks = events(http.post("/v1/fim/completions", json={**GAP, "stream": True}).text)
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == text
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    data = http.post("/infill", json={**INFILL, "stream": True}).text.split("\n\n")
    *first, last = [json.loads(block.removeprefix("data: ")) for block in data if block]
    assert "".join(chunk["content"] for chunk in first) == text
    assert (last["stop"], last["content"]) == (True, "")


def test_a_seed_may_be_called_random_seed(http: httpx.Client) -> None:
    fields = {"temperature": 1.5, "suffix": None}
    text = completion(http, seed=5, **fields)["choices"][0]["text"]
    assert post(http, "/v1/fim/completions", GAP, random_seed=5, **fields)["choices"][0]["text"] == text
    answer = http.post("/v1/fim/completions", json={**GAP, "random_seed": 5, "seed": 6})
    assert answer.json()["error"]["param"] == "random_seed"


def test_what_editors_send_beside_the_text_is_taken(http: httpx.Client) -> None:
    """The fields of llama.cpp's own editor plugins."""
    advice = {"samplers": ["top_k", "top_p", "infill"], "cache_prompt": True, "id_slot": 0, "t_max_prompt_ms": 500,
              "t_max_predict_ms": 1000, "response_fields": ["content"], "top_k": 40}  # fmt: skip
    plain = post(http, "/infill", INFILL)["content"]
    assert post(http, "/infill", INFILL, **advice)["content"] == plain
    head, tail = BEFORE[:10], BEFORE[10:]
    assert post(http, "/infill", INFILL, input_prefix=head, prompt=tail)["content"] == plain
    more = post(http, "/infill", INFILL, input_extra=[{"filename": "a.txt", "text": "An owl."}])
    joined = completion(http, prompt="a.txt\nAn owl.\n" + BEFORE)
    assert more["content"] == joined["choices"][0]["text"]
    warmed = post(http, "/infill", INFILL, n_predict=0)
    assert (warmed["content"], warmed["tokens_predicted"]) == ("", 0)


def test_a_stop_string_is_told(http: httpx.Client) -> None:
    text = completion(http)["choices"][0]["text"]
    answer = post(http, "/infill", INFILL, stop=[text[4:8]])
    assert (answer["content"], answer["stop_type"], answer["stopping_word"]) == (text[:4], "word", text[4:8])


def test_a_line_with_less_white_space_ends_the_content() -> None:
    text = "x = 1\n    y = 2\n\n    z = 3\nreturn\n"
    assert indented(text, 4) == "x = 1\n    y = 2\n\n    z = 3"
    assert indented(text, 0) == text
    assert indented("x", 4) == "x"
    assert indented("", 4) == ""


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/fim/completions", {"logprobs": 1}, "logprobs"),
        ("/v1/fim/completions", {"echo": True}, "echo"),
        ("/v1/fim/completions", {"prompt": ["x"]}, "prompt"),
        ("/v1/fim/completions", {"response_format": {"type": "json_object"}}, "response_format"),
        ("/v1/fim/completions", {"max_tokens": 100_000}, "max_tokens"),
        ("/infill", {"input_suffix": None}, "input_suffix"),
        ("/infill", {"max_tokens": 5}, "max_tokens"),
        ("/infill", {"suffix": "x"}, "suffix"),
        ("/infill", {"n_predict": 100_000}, "n_predict"),
        ("/infill", {"n_indent": 4, "stream": True}, "n_indent"),
        ("/infill", {"n": 2}, "n"),
        ("/infill", {"input_extra": [{"filename": "x"}]}, "input_extra[0].text"),
        ("/infill", {"stop_token_ids": [7]}, "stop_token_ids"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    http: httpx.Client, path: str, fields: dict[str, Any], param: str
) -> None:
    answer = http.post(path, json={**(GAP if "fim" in path else INFILL), **fields})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
