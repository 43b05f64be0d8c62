"""Log-probabilities of prompts. If one fails, evaluations score the wrong text, or scoring changes what is answered."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.decoding.policies.prefill import SCORED_CHUNK
from engine.errors import RequestError
from engine.events import PromptScored, TokenLogprob
from tests.conftest import MakeEngine
from tests.engine.driving import Answer, ask, drive
from tests.reference.transformer import ReferenceModel

PROMPT = [(7 * i * i + 3 * i) % 80 + 8 for i in range(300)]
assert len(PROMPT) > 2 * SCORED_CHUNK


def scores(answer: Answer) -> list[TokenLogprob]:
    return [entry for event in answer.events if isinstance(event, PromptScored) for entry in event.logprobs]


def check(found: list[TokenLogprob], expected: torch.Tensor, prompt: list[int], count: int = 0) -> None:
    """expected: [len(prompt), V] log-probabilities of what follows each token."""
    assert [entry.token_id for entry in found] == prompt[1:]
    for row, entry in zip(expected, found, strict=False):
        assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=1e-4)
        least, most = ((row >= row[entry.token_id] + margin).sum().item() for margin in (1e-4, -1e-4))
        assert least <= entry.rank <= most
        top = row.topk(count) if count else None
        assert [token for token, _ in entry.top] == ([] if top is None else top.indices.tolist())
        if top is not None:
            assert [value for _, value in entry.top] == pytest.approx(top.values.tolist(), abs=1e-4)


@pytest.fixture(scope="module")
def expected(tiny_checkpoint: Path) -> torch.Tensor:
    return torch.from_numpy(ReferenceModel(tiny_checkpoint).causal(PROMPT)).log_softmax(-1)


@pytest.mark.parametrize("decoding", ["ar", "diffusion", "speculative"])
@pytest.mark.parametrize("length", [1, 2, SCORED_CHUNK, SCORED_CHUNK + 1, 300])
def test_scores_are_those_of_the_reference_and_change_no_answer(
    tiny_engine: MakeEngine, expected: torch.Tensor, decoding: str, length: int
) -> None:
    engine = tiny_engine()
    prompt = PROMPT[:length]
    plain = drive(engine, [ask("a", prompt, decoding, max_tokens=6)])["a"]
    scored = drive(engine, [ask("a", prompt, decoding, max_tokens=6, prompt_logprobs=3)])["a"]
    assert scored.outcome == plain.outcome
    check(scores(scored), expected, prompt, 3)
    again = drive(engine, [ask("b", prompt, decoding, max_tokens=6)])["b"]
    assert again.outcome == plain.outcome, "a scored prompt's pages are as good as any for the prefix cache"


def test_a_prompt_may_be_all_there_is_to_do(tiny_engine: MakeEngine, expected: torch.Tensor) -> None:
    """`max_tokens` 0 is how evaluations ask for the likelihood of a text."""
    answer = drive(tiny_engine(), [ask("a", PROMPT, max_tokens=0, prompt_logprobs=0)])["a"]
    assert (answer.tokens, answer.finished.reason, answer.finished.stats.completion_tokens) == ([], "length", 0)
    check(scores(answer), expected, PROMPT)


def test_company_and_preemption_change_no_score(tiny_engine: MakeEngine, expected: torch.Tensor) -> None:
    """Scored, plain and answering requests in a pool too small for all of them at once."""
    engine = tiny_engine(kv_cache_tokens=416, max_running=6, max_batch_tokens=128, max_block_length=16)
    visits = [ask(f"s{i}", PROMPT[: 120 + i], max_tokens=20 * (i % 2), prompt_logprobs=i % 3) for i in range(6)]
    visits += [ask(f"p{i}", PROMPT[i : 40 + i], "diffusion", max_tokens=40) for i in range(6)]
    answers = drive(engine, visits)
    assert sum(answer.finished.stats.preemptions for answer in answers.values()) > 0, "the pool was not too small"
    for i in range(6):
        check(scores(answers[f"s{i}"]), expected, PROMPT[: 120 + i], i % 3)


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"max_tokens": 0}, "max_tokens"), ({"max_tokens": -1, "prompt_logprobs": 0}, "max_tokens"),
     ({"prompt_logprobs": -1}, "prompt_logprobs")],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_at_once(tiny_engine: MakeEngine, fields: dict[str, int], param: str) -> None:
    with pytest.raises(RequestError) as refused:
        tiny_engine().add(ask("a", PROMPT[:4], **fields))
    assert refused.value.param == param
