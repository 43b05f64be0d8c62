"""POST /v1/edit/completions. If these fail, an editor pastes prose, or half a fence, into somebody's code."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

BEFORE = "<|recently_viewed_code_snippets|>\n\n<|/recently_viewed_code_snippets|>\n\n<|current_file_content|>\n"
REGION = "<|code_to_edit|>\ndef add(first<|cursor|>, b):\n    return a + b\n<|/code_to_edit|>\n"
EDITS = "<|/current_file_content|>\n\n<|edit_diff_history|>\n\n<|/edit_diff_history|>"
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": BEFORE + REGION + EDITS}], "temperature": 0}


def edit(http: httpx.Client, **fields: Any) -> httpx.Response:
    return http.post("/v1/edit/completions", json={**ASK, "max_tokens": 80, **fields})


@pytest.mark.parametrize("decoding", ["ar", "auto", "diffusion"])
def test_an_answer_is_a_fence_and_nothing_else(http: httpx.Client, decoding: str) -> None:
    answer = edit(http, decoding=decoding)
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    assert answer.json()["id"].startswith("edit-")
    if choice["finish_reason"] == "stop":
        assert re.fullmatch(r"```\S{0,16}\n.*\n```", choice["message"]["content"], re.DOTALL)
    else:
        assert choice["message"]["content"].startswith("```"[: len(choice["message"]["content"])])


def test_the_model_is_told_what_the_tags_mean(http: httpx.Client) -> None:
    alone = http.post("/v1/chat/completions", json={**ASK, "max_tokens": 1}).json()["usage"]["prompt_tokens"]
    told = edit(http, return_token_ids=True, max_tokens=1).json()
    assert told["usage"]["prompt_tokens"] > alone + 50
    text = http.post("/detokenize", json={"tokens": told["prompt_token_ids"]}).json()["prompt"]
    assert REGION in text
    assert text.index("You edit code") < text.index(REGION)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"role": "system", "content": "x"}, *ASK["messages"]]}, "messages"),
        ({"messages": [{"role": "assistant", "content": REGION}]}, "messages"),
        ({"messages": [{"role": "user", "content": "Fix it."}]}, "messages"),
        ({"messages": [{"role": "user", "content": REGION + REGION}]}, "messages"),
        ({"messages": [{"role": "user", "content": "<|/code_to_edit|> x <|code_to_edit|>"}]}, "messages"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"structured_outputs": {"regex": "x"}}, "structured_outputs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"continue_final_message": True}, "continue_final_message"),
    ],
)
def test_what_is_no_edit_is_refused_by_name(http: httpx.Client, fields: dict[str, Any], param: str) -> None:
    answer = edit(http, **fields)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
