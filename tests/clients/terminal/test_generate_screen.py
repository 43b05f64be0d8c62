"""What `lightcone generate` makes of a stream, and what it draws: no server, no terminal."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from rich.cells import cell_len
from rich.console import Console

from server.terminal.completion_client import Answer, GenerateError, Prompt, chunks
from server.terminal.screen import MASK, Screen, answer_text, confidence_style, printable, summary

DRAFT: dict[str, Any] = {
    "text": f"he{MASK} ca{MASK} sat",
    "block": 0,
    "step": 2,
    "masked": 2,
    "length": 8,
    "tokens": [
        {"text": "e", "confidence": 0.9},
        {"text": None, "confidence": None},
        {"text": " ca", "confidence": 0.1},
        {"text": None, "confidence": None},
        {"text": " sat", "confidence": None},
        {"text": " beyond", "confidence": 0.9},
    ],
}
"""A draft behind a settled "h" that may yet become a stop string, and with tokens beyond the end of the answer."""


def choice(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "finish_reason": None, **fields}]}


def run(answer: httpx.Response | Exception, **prompt: Any) -> list[dict[str, Any]]:
    """What `chunks` yields of a response."""

    def respond(request: httpx.Request) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def collect() -> list[dict[str, Any]]:
        async with httpx.AsyncClient(base_url="http://test", transport=httpx.MockTransport(respond)) as client:
            return [chunk async for chunk in chunks(client, Prompt("x", **prompt), drafts=False)]

    return asyncio.run(collect())


def test_a_draft_is_drawn_in_the_colour_of_each_token() -> None:
    answer = Answer("t")
    answer.apply(choice(text="", draft=DRAFT))
    text = answer_text(answer)
    assert text.plain == f"the{MASK} ca{MASK} sat"
    styles = {text.plain[span.start : span.end]: str(span.style) for span in text.spans}
    assert styles["e"] == confidence_style(0.9)
    assert styles[" ca"] == confidence_style(0.1)
    assert styles["e"] != styles[" ca"]
    assert "t" not in styles, "settled text is plain"


def test_a_draft_whose_text_does_not_match_its_tokens_is_still_shown() -> None:
    """Half characters of neighbouring tokens make one character in the text of the draft."""
    tokens = [{"text": MASK, "confidence": 0.5}, {"text": MASK, "confidence": 0.5}, {"text": "!", "confidence": 0.5}]
    answer = Answer()
    answer.apply(choice(text="", draft={**DRAFT, "text": "\U0001f989!", "tokens": tokens}))
    assert answer_text(answer).plain == "\U0001f989!"


def test_confidence_goes_from_red_to_green() -> None:
    def channels(confidence: float) -> list[int]:
        return [int(part) for part in confidence_style(confidence).partition("(")[2].rstrip(")").split(",")]

    reds, greens = zip(*((channels(n / 10)[0], channels(n / 10)[1]) for n in range(11)), strict=True)
    assert list(reds) == sorted(reds, reverse=True)
    assert list(greens) == sorted(greens)


def test_what_verification_rejects_is_struck_out_for_a_moment() -> None:
    answer = Answer()
    draft = {**DRAFT, "text": " 12. Then 5", "masked": 0, "tokens": [{"text": " 12. Then 5", "confidence": 0.5}]}
    answer.apply(choice(delta={"content": ""}, draft=draft))
    answer.apply(choice(delta={"content": " 12. The"}, draft=None))
    text = answer_text(answer)
    assert answer.text == " 12. The"
    assert text.plain == " 12. Then 5"
    assert [str(span.style) for span in text.spans] == ["strike bright_black"]
    answer.apply(choice(delta={"content": " answer"}, draft=None))
    assert answer_text(answer).plain == " 12. The answer"


def test_text_cannot_command_the_terminal() -> None:
    assert printable("a\x1b]0;title\x07b\x9b2J\x7f\tc\nd") == "a\u241b]0;title\u2407b\ufffd2J\u2421\tc\nd"
    assert printable("née 猫 👩\u200d🚀") == "née 猫 👩\u200d🚀"


@pytest.mark.parametrize("width", [4, 20, 80])
def test_wide_and_long_text_stays_within_the_terminal(width: int) -> None:
    console = Console(file=io.StringIO(), width=width, height=6, force_terminal=True, color_system=None)
    answer = Answer("猫 and 🦉 and a-very-long-word-without-a-break " * 20)
    with Screen(Prompt("x"), console) as screen:
        screen.show(answer)
        drawn = console.file.getvalue().rpartition("\x1b[2K")[2]  # type: ignore[attr-defined]
        screen.finish(answer, 1.0)
    assert len(drawn.split("\n")) <= 6
    for line in console.file.getvalue().replace("\r", "\n").split("\n"):  # type: ignore[attr-defined]
        assert cell_len(_without_escapes(line)) <= width


def _without_escapes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_the_summary_says_what_is_known() -> None:
    assert summary(Answer("x"), 1.5, cut=True) == "1.50 s\ncut at max tokens"
    usage = {"completion_tokens": 1, "diffusion": {"passes": 2, "tokens_per_pass": 0.5, "decoding": "ar", "seed": 3}}
    assert summary(Answer("x", usage=usage), 1.5, cut=False) == (
        "1 token · 2 passes · 0.50 tokens per pass · 1.50 s\nar · seed 3"
    )


def stream(*parts: bytes) -> httpx.Response:
    class Parts(httpx.AsyncByteStream):
        async def __aiter__(self) -> Any:
            for part in parts:
                yield part

    return httpx.Response(200, stream=Parts())


def test_events_are_read_however_they_are_cut_up() -> None:
    """And text with a line separator in it is no end of a line."""
    payload = {"choices": [{"text": "a\u2028b\u0085c 猫"}]}
    data = f": hello\r\ndata: {json.dumps(payload, ensure_ascii=False)}\r\n\r\ndata: [DONE]\n\n".encode()
    cuts: Iterator[bytes] = (data[n : n + 1] for n in range(len(data)))
    assert run(stream(*cuts)) == run(stream(data)) == [payload]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (stream(b'data: {"choices": []}\n\n'), "ended before"),
        (stream(b'data: {"error": {"message": "the engine failed"}}\n\n'), "the engine failed"),
        (stream(b"data: oops\n\n"), "not JSON"),
        (httpx.Response(502, text="<html>"), "HTTP 502 Bad Gateway"),
        (httpx.Response(400, json={"error": {"message": "no such field"}}), "no such field"),
        (httpx.Response(400, json={"error": "plain"}), "plain"),
        (httpx.Response(400, json=[]), "HTTP 400 Bad Request"),
        (
            httpx.Response(503, json={"error": {"message": "loading"}}, headers={"Retry-After": "5"}),
            r"loading \(retry after 5 s\)",
        ),
        (httpx.ConnectError("refused"), "cannot reach http://test.*refused"),
        (httpx.ReadError(""), "the connection failed: ReadError"),
    ],
)
def test_every_failure_is_told_in_a_few_words(answer: httpx.Response | Exception, message: str) -> None:
    with pytest.raises(GenerateError, match=message):
        run(answer)
