"""What an outcome does to its sequence. If one fails, an answer ends in the wrong place or for the wrong reason."""

from __future__ import annotations

import pytest

from engine.batch import CAUSAL, Phase, Span
from engine.decoding.results import StepOutcome
from engine.events import Finished, GenerationEvent, StepStats, TokensSettled
from engine.request import Request
from engine.scheduling.outcome import NON_FINITE, apply_outcome
from engine.sequence import Sequence

END = 2


def apply(outcome_of: dict[str, object], max_tokens: int = 5) -> tuple[bool, list[GenerationEvent], Sequence]:
    """Applies one outcome to a fresh sequence."""
    seq = Sequence(Request(request_id="r", prompt_token_ids=[7, 8], max_tokens=max_tokens), frozenset({END}), 0)
    span = Span(seq, Phase.VERIFY, 1, [8], CAUSAL, num_logits=1)
    events: list[GenerationEvent] = []
    stats = StepStats(running=0, waiting=0, free_pages=0, num_pages=0)
    finished = apply_outcome(StepOutcome(span, **outcome_of), events, stats)  # type: ignore[arg-type]
    return finished, events, seq


@pytest.mark.parametrize(
    ("tokens", "shown", "reason", "stop_token"),
    [
        ([20, 21], [20, 21], None, None),
        ([20, END, 21], [20], "stop", END),
        ([20, 21, 22, 23, 24, 25], [20, 21, 22, 23, 24], "length", None),
        ([20, 21, 22, 23, END], [20, 21, 22, 23], "stop", END),
        ([], [], None, None),
    ],
)
def test_an_answer_ends_at_its_end_token_or_its_length(
    tokens: list[int], shown: list[int], reason: str | None, stop_token: int | None
) -> None:
    finished, events, _ = apply({"token_ids": tokens})
    settled = [token for event in events if isinstance(event, TokensSettled) for token in event.token_ids]
    ends = [(event.reason, event.stop_token_id) for event in events if isinstance(event, Finished)]
    assert (settled, finished) == (shown, reason is not None)
    assert ends == ([] if reason is None else [(reason, stop_token)])


def test_a_whole_text_of_a_grammar_ends_like_any_other() -> None:
    finished, events, _ = apply({"exhausted": True})
    assert finished
    assert [(event.reason, event.error) for event in events if isinstance(event, Finished)] == [("stop", None)]


@pytest.mark.parametrize(("failure", "error"), [({"finite": False}, NON_FINITE), ({"error": "broken"}, "broken")])
def test_of_a_failed_step_nothing_counts(failure: dict[str, object], error: str) -> None:
    """Tokens chosen from NaN would be shown, or a grammar's end hide the failure."""
    finished, events, seq = apply({"token_ids": [20], "num_cached": 3, "exhausted": True} | failure)
    assert finished
    assert [(event.__class__, getattr(event, "error", None)) for event in events] == [(Finished, error)]
    assert (seq.num_cached, seq.num_generated) == (0, 0)
