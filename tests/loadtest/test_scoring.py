"""If these fail, a decoding mode that answers wrongly is reported as right, or the other way round."""

import pytest

from loadtest.modes import Mode
from loadtest.records import Record
from loadtest.scoring import is_right, question_text, reference_of, score
from loadtest.workload import Prompt

PROMPTS = [
    Prompt(text="2 + 2?", answers=("4",), category="sum"),
    Prompt(text="2 + 3?", answers=("5", "five"), category="sum"),
    Prompt(text="Say hi", answers=("hi",), category="talk"),
    Prompt(text="Tell a story"),
]
MODES = [Mode("diffusion", 0.9), Mode("ar")]


def said(*texts: str, **fields: object) -> list[Record]:
    common = {"start_s": 0.0, "passes": 2, "completion_tokens": 8} | fields
    return [Record(index=i, text=text, **common) for i, text in enumerate(texts)]  # type: ignore[arg-type]


def test_shares_agreement_and_tokens_per_pass() -> None:
    diffusion, ar = score(MODES, PROMPTS, [said("4", "6", "hi", "Once"), said("4", " five\n", "ho", "Once")])
    assert (diffusion.correct, diffusion.asked, ar.correct) == (2, 3, 2)
    assert diffusion.exact_share == pytest.approx(2 / 3)
    assert diffusion.interval[0] < 2 / 3 < diffusion.interval[1]
    assert diffusion.agreement == pytest.approx(2 / 4)
    assert (ar.agreement, ar.reference, diffusion.reference) == (1.0, "ar", "ar")
    assert diffusion.tokens_per_pass == pytest.approx(4.0)
    assert {name: (c.correct, c.asked) for name, c in diffusion.categories.items()} == {"sum": (1, 2), "talk": (1, 1)}


def test_mistakes_and_disagreements_are_shown_with_what_was_expected() -> None:
    diffusion, _ = score(MODES, PROMPTS, [said("4", "6", "hi", "Once"), said("4", "5", "hi", "There")], samples=1)
    assert diffusion.mistakes == [("2 + 3?", "5", "6")]
    assert diffusion.disagreements == [("2 + 3?", "5", "6")]


def test_a_failed_request_is_a_wrong_answer_and_is_not_compared() -> None:
    failed = said("4", error="http_500")
    diffusion, ar = score(MODES, PROMPTS, [failed, said("4", "5", "hi", "x")])
    assert (diffusion.correct, diffusion.asked, diffusion.errors) == (0, 1, {"http_500": 1})
    assert diffusion.agreement is None
    assert diffusion.tokens_per_pass is None
    assert ar.correct == 3


def test_records_may_come_in_any_order_and_incomplete() -> None:
    records = list(reversed(said("4", "5", "hi")))[1:]
    quality = score([Mode("ar")], PROMPTS, [records])[0]
    assert (quality.correct, quality.asked) == (2, 2)


def test_nothing_to_check_has_no_share() -> None:
    quality = score([Mode()], [Prompt(text="Tell a story")], [said("Once")])[0]
    assert (quality.exact_share, quality.agreement) == (None, 1.0)
    assert score([], PROMPTS, []) == []


def test_the_reference_is_ar_or_else_the_first() -> None:
    assert reference_of(MODES) == 1
    assert reference_of([Mode("diffusion", 0.5), Mode("diffusion", 0.9)]) == 0


def test_the_ways_to_be_right() -> None:
    assert is_right(" 4\n", ["4"])
    assert not is_right("4.", ["4"])
    assert is_right("The answer is 4.", ["4"], "contains")
    assert is_right("First 12, so 1,234.50", ["#### 1234.5"], "number")
    assert not is_right("First 4, then 5", ["4"], "number")
    assert not is_right("no idea", ["4"], "number")
    assert not is_right("no idea", ["none either"], "number")


def test_a_question_reads_as_a_person_would_read_it() -> None:
    assert question_text(Prompt(messages=({"role": "system", "content": "a"}, {"role": "user", "content": "b"}))) == "b"
    assert question_text(Prompt(token_ids=(1, 2, 3))) == "3 token ids"
