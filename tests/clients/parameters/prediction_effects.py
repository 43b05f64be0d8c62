"""What a predicted output does: the same answer in fewer passes, and counts that say how much of it was right."""

from __future__ import annotations

from tests.clients.asker import Asker


def prediction(asker: Asker) -> None:
    """An answer of 80 tokens; a prediction that is right, one with a word changed, and one of something else."""
    plain = asker.answer(max_tokens=80)
    text, passes = _text(plain), plain["usage"]["diffusion"]["passes"]
    details = plain["usage"]["completion_tokens_details"]
    assert (details["accepted_prediction_tokens"], details["rejected_prediction_tokens"]) == (0, 0)
    words = text.split(" ")
    for guess, right, most in (
        (text, True, 10),
        (" ".join([*words[:9], "quite", *words[10:]]), True, 16),
        ([{"type": "text", "text": text[:50]}, {"type": "text", "text": text[50:]}], True, 10),
        ("1 2 3 4 5 6 7 8 9", False, passes + 4),
        ("", False, passes),
    ):
        answer = asker.answer(max_tokens=80, prediction={"type": "content", "content": guess})
        assert _text(answer) == text
        assert answer["usage"]["diffusion"]["passes"] <= most
        details = answer["usage"]["completion_tokens_details"]
        assert (details["accepted_prediction_tokens"] > 40) == right
    assert details["rejected_prediction_tokens"] == 0
    for wrong in ("x", {"type": "content"}, {"type": "other", "content": "x"}, {"type": "content", "content": [1]}):
        error = asker.send(prediction=wrong).json()["error"]
        assert error["param"].startswith("prediction")


def _text(answer: dict[str, object]) -> str:
    choice = answer["choices"][0]  # type: ignore[index]
    text: str = choice["text"] if "text" in choice else choice["message"]["content"]
    return text
