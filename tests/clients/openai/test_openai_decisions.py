"""OpenAI's Python SDK with decisions, and a real model. If these fail, the probabilities are not the model's."""

from __future__ import annotations

import math
import typing
from typing import Any

import httpx
import openai
import pytest
from openai.types import Decision
from openai.types.decision_create_params import DecisionCreateParams

from server.api.decisions_api.questions import asked
from server.api.decisions_api.request import Question
from tests.http_helpers import metric_total

INPUT = "Add 87 and 25."
QUESTIONS: list[dict[str, Any]] = [
    {"type": "predicate", "instructions": "The numbers are whole.", "name": "whole"},
    {"type": "choice", "instructions": "The sum?", "choices": [{"value": v} for v in ("112", "113", "11", "one")]},
    {"type": "choice", "instructions": [{"type": "input_text", "text": "Even?"}],
     "choices": [{"value": True, "description": "It is even."}, {"value": False}, {"value": "true"}]},
    {"type": "score", "instructions": "Hard?", "levels": [{"label": "easy"}, {"label": "hard", "description": "!"}]},
]  # fmt: skip
ROUNDING = 0.05
"""The model computes in a half type: what ran together with other tokens has slightly other logits."""


def decide(sdk: openai.OpenAI, questions: Any = QUESTIONS, **fields: Any) -> Decision:
    return sdk.decisions.create(**{"model": "builtin", "input": INPUT, "questions": questions, **fields})


def likelihood(http: httpx.Client, question: dict[str, Any], answer: str, *, ended: bool) -> float:
    """By the log-probabilities of a prompt that the answer is a part of: another way through the engine."""
    content = f"{INPUT}\n\n{asked(Question.model_validate(question)).text}"
    prompt = http.post("/tokenize", json={"messages": [{"role": "user", "content": content}]}).json()["tokens"]
    own = http.post("/tokenize", json={"prompt": answer, "add_special_tokens": False}).json()["tokens"]
    own = [*own, 2] if ended else own
    body = {"prompt": [*prompt, *own], "max_tokens": 0, "prompt_logprobs": 0}
    scores = http.post("/v1/completions", json=body).json()["choices"][0]["prompt_logprobs"]
    return math.fsum(scores[len(prompt) + place][str(token)]["logprob"] for place, token in enumerate(own))


def test_probabilities_are_the_likelihoods_of_the_answers(sdk: openai.OpenAI, http: httpx.Client) -> None:
    decision = decide(sdk)
    whole, total, even, hard = decision.answers
    spellings = (["yes", "no"], ["112", "113", "11", "one"], ["true", "false", '"true"'], ["easy", "hard"])
    for question, answer, texts in zip(QUESTIONS, decision.answers, spellings, strict=True):
        ended = any(one != other and other.startswith(one) for one in texts for other in texts)
        likelihoods = [likelihood(http, question, text, ended=ended) for text in texts]
        summed = math.fsum(map(math.exp, likelihoods))
        expected = [math.exp(value) / summed for value in likelihoods]
        assert answer.type != "refusal"
        given = [answer.probability, 1 - answer.probability] if answer.type == "predicate" else [
            part.probability for part in answer.probabilities
        ]  # fmt: skip
        assert given == pytest.approx(expected, rel=ROUNDING, abs=2e-3)
        mass: Any = answer
        assert mass.mass == pytest.approx(summed, rel=ROUNDING)
    assert (whole.type, whole.name) == ("predicate", "whole")
    assert total.type == "choice"
    assert total.confidence == max(part.probability for part in total.probabilities)
    assert even.type == "choice"
    assert [part.value for part in even.probabilities] == [True, False, "true"]
    assert hard.type == "score"
    assert hard.score == pytest.approx(hard.probabilities[1].probability)
    assert decision.usage.output_tokens == 0
    assert decision.usage.total_tokens == decision.usage.input_tokens


def test_answers_do_not_depend_on_the_other_questions(sdk: openai.OpenAI) -> None:
    together = decide(sdk).answers
    for question, answer in zip(QUESTIONS, together, strict=True):
        [alone] = decide(sdk, [question]).answers
        if alone.type == "predicate" and answer.type == "predicate":
            assert alone.probability == pytest.approx(answer.probability, rel=ROUNDING, abs=2e-3)
        elif alone.type == "choice" and answer.type == "choice":
            assert [part.probability for part in alone.probabilities] == pytest.approx(
                [part.probability for part in answer.probabilities], rel=ROUNDING, abs=2e-3
            )


def test_many_questions_are_a_few_passes(sdk: openai.OpenAI, http: httpx.Client) -> None:
    """And the input is computed once: 40 questions, one each with several answers, in a handful of passes."""

    def passes() -> float:
        return metric_total(http.get("/metrics").text, "lightcone_step_duration_seconds_count")

    text = "The owl has a coin, and the fox has a key. " * 6
    questions = [{"type": "predicate", "instructions": f"The owl has {number} coins."} for number in range(40)]
    before = passes()
    decision = decide(sdk, questions, input=text)
    assert len(decision.answers) == 40
    assert passes() - before <= 8
    again = decide(sdk, questions, input=text)
    assert again.usage.input_tokens_details.cached_tokens > 50


def test_every_field_of_openais_request_type_works_or_is_refused(sdk: openai.OpenAI) -> None:
    """A new version of the package with a new field fails here until the field is known."""
    known = {"input", "model", "questions", "prompt_cache_key", "prompt_cache_options", "safety_identifier"}
    assert set(typing.get_type_hints(DecisionCreateParams)) == known
    plain = decide(sdk).answers
    other = decide(sdk, prompt_cache_key="k", safety_identifier="s", prompt_cache_options={"mode": "implicit"}).answers
    assert [answer.type for answer in plain] == [answer.type for answer in other]
    with pytest.raises(openai.BadRequestError) as refused:
        decide(sdk, prompt_cache_options={"mode": "explicit"})
    assert refused.value.param == "prompt_cache_options.mode"
