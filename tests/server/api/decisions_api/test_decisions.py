"""POST /v1/decisions with an engine whose distributions are known: what it is asked, in which order, and refusals.

If these fail, questions about one input cost as much as so many chats, or a wrong one is answered.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from engine.events import Finished, GenerationEvent, TokenLogprob, TokensSettled
from engine.request import Request
from server.text.served_model import ServedModel
from tests.fakes import FakeEngine, encode, stats_of
from tests.server.api.test_tools import NEMOTRON, use
from tests.server.conftest import Api, ApiFactory

pytestmark = pytest.mark.anyio

PREDICATE: dict[str, Any] = {"type": "predicate", "instructions": "It rains."}
COLOURS: dict[str, Any] = {
    "type": "choice", "instructions": "Which colour?", "choices": [{"value": "red"}, {"value": "green"}],
}  # fmt: skip
SCALE: dict[str, Any] = {"type": "score", "instructions": "How wet?", "levels": [{"label": "dry"}, {"label": "wet"}]}


def telling(request: Request) -> Iterator[GenerationEvent]:
    """Of each listed token e ** -(1 + its id % 3); the end is what is chosen."""
    listed = [(token, -1.0 - token % 3) for token in request.sampling.logprob_token_ids]
    stats = stats_of(request, 1, 1)
    assert request.passes_ends
    scores = [TokenLogprob(2, -0.1, sorted(listed, key=lambda pair: -pair[1]))]
    yield TokensSettled(request_id=request.request_id, token_ids=[2], stats=stats, logprobs=scores)
    yield Finished(request_id=request.request_id, reason="length", stats=stats)


def likelihood(text: str) -> float:
    return math.exp(sum(-1.0 - token % 3 for token in encode(text)))


async def decide(api: Api, *questions: dict[str, Any], **fields: Any) -> httpx.Response:
    body = {"input": "The street is wet.", "questions": list(questions), **fields}
    return await api.http.post("/v1/decisions", json=body)


async def test_each_kind_of_question_is_answered_in_its_order(serve: ApiFactory) -> None:
    async with serve(FakeEngine(telling)) as api:
        answer = (await decide(api, PREDICATE, {**COLOURS, "name": "colour"}, SCALE)).json()
        predicate, choice, score = answer["answers"]
        yes, no = likelihood("yes"), likelihood("no")
        assert predicate["probability"] == pytest.approx(yes / (yes + no))
        red, green = likelihood("red"), likelihood("green")
        assert choice["name"] == "colour"
        assert choice["choice"] == ("red" if red >= green else "green")
        assert choice["probabilities"][0] == {"value": "red", "probability": pytest.approx(red / (red + green))}
        assert choice["confidence"] == pytest.approx(max(red, green) / (red + green))
        assert choice["mass"] == pytest.approx(red + green)
        wet = likelihood("wet") / (likelihood("dry") + likelihood("wet"))
        assert score["score"] == score["probabilities"][1]["probability"] == pytest.approx(wet)
        assert (answer["model"], answer["scoring"]) == ("builtin", "causal")
        assert answer["usage"]["output_tokens"] == 0
        assert answer["usage"]["looks"] == len(api.engine.requests)


async def test_what_prompts_have_in_common_comes_first_and_once(serve: ApiFactory) -> None:
    async with serve(FakeEngine(telling)) as api:
        long = "It rains, and the street is wet. " * 4
        answer = (await decide(api, PREDICATE, COLOURS, SCALE, input=long)).json()
        asked = [request.prompt_token_ids for request in api.engine.requests]
        firsts = asked[:3]
        assert [len(request.sampling.logprob_token_ids) for request in api.engine.requests[:3]] == [2, 2, 2]
        shared = next(i for i, tokens in enumerate(zip(*firsts, strict=False)) if len(set(tokens)) > 1)
        assert shared > len(encode(long))
        assert answer["usage"]["input_tokens"] == shared + sum(len(tokens) - shared for tokens in firsts)
        for tokens in asked[3:]:  # what has an answer's beginning in it comes last
            assert any(tokens[: len(first)] == first and len(tokens) > len(first) for first in firsts)


async def test_each_stage_waits_for_the_one_before(serve: ApiFactory) -> None:
    """What is asked too early finds nothing in the prefix cache, and computes the input again."""
    submitted: list[int] = []

    def noting(request: Request) -> Iterator[GenerationEvent]:
        submitted.append(len(engine.requests))
        yield from telling(request)

    engine = FakeEngine(noting)
    async with serve(engine) as api:
        answer = (await decide(api, PREDICATE, COLOURS, SCALE)).json()
        total = answer["usage"]["looks"]
        assert submitted == [1, 3, 3, *[total] * (total - 3)]


async def test_prompts_are_those_of_chats(serve: ApiFactory) -> None:
    """Else a model is asked in a form that it was never trained with."""
    async with serve(FakeEngine(telling)) as api:
        turns = [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "input_text", "text": "The street"}]},
        ]
        for given in ("The street", turns, [*turns, {"role": "assistant", "content": "Yes?"}]):
            await decide(api, PREDICATE, COLOURS, input=given)
            model = api.service.model
            assert model is not None
            for request in api.engine.requests[-2:]:
                text = model.tokenizer.decode(request.prompt_token_ids, skip_special_tokens=False)
                before, _, question = text.rpartition("<|user|>")
                assert question.endswith("and nothing else.<|assistant|>") or question.count("- red\n- green")
                assert ("The street\n\n" in question) is (given == "The street" or len(given) == 2)
                assert ("Be brief." in before) is not isinstance(given, str)
            api.engine.requests.clear()


async def test_the_end_counts_where_one_answer_begins_another(serve: ApiFactory) -> None:
    async with serve(FakeEngine(telling)) as api:
        choices = [{"value": "no"}, {"value": "no no"}]
        answer = (await decide(api, {**COLOURS, "choices": choices})).json()["answers"][0]
        end = math.exp(-1.0 - 2 % 3)
        one, two = likelihood("no") * end, likelihood("no no") * end
        assert [part["probability"] for part in answer["probabilities"]] == pytest.approx(
            [one / (one + two), two / (one + two)]
        )


async def test_truth_values_and_their_spellings_are_two_answers(serve: ApiFactory) -> None:
    async with serve(FakeEngine(telling)) as api:
        values = [True, "true", False]
        answer = (await decide(api, {**COLOURS, "choices": [{"value": value} for value in values]})).json()
        found = [part["value"] for part in answer["answers"][0]["probabilities"]]
        assert list(map(type, found)) == [bool, str, bool]


async def test_a_model_that_cannot_help_thinking_is_refused(serve: ApiFactory) -> None:
    """What it would say first is no answer."""
    async with serve(FakeEngine(telling)) as api:
        use(api, NEMOTRON)
        assert (await decide(api, PREDICATE)).status_code == 200, "this one can be told not to think"
        use(api, NEMOTRON.replace("if enable_thinking", "if true"))
        refused = await decide(api, PREDICATE)
        assert refused.status_code == 400
        assert "reasons" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"questions": []}, "questions"),
        ({"questions": [PREDICATE] * 401}, "questions"),
        ({"questions": [{"type": "predicate"}]}, "questions[0].instructions"),
        ({"questions": [{**COLOURS, "choices": [{"value": "a"}]}]}, "questions[0].choices"),
        ({"questions": [{**COLOURS, "choices": [{"value": "a"}, {"value": "a"}]}]}, "questions[0]"),
        ({"questions": [{**COLOURS, "choices": [{"value": 1}, {"value": "a"}]}]}, "questions[0].choices[0].value"),
        ({"questions": [{**COLOURS, "choices": [{"value": str(n)} for n in range(256)]}]}, "questions[0].choices"),
        ({"questions": [PREDICATE, {**PREDICATE, "levels": SCALE["levels"]}]}, "questions[1]"),
        ({"questions": [{**SCALE, "levels": [{"label": "a"}, {"label": "a"}]}]}, "questions[0]"),
        ({"questions": [{**PREDICATE, "type": "number"}]}, "questions[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
         "input[0].content[0].type"),
        ({"input": "wet " * 5000}, "input"),
        ({"model": "other"}, "model"),
        ({"temperature": 1}, "temperature"),
        ({"stream": True}, "stream"),
        ({"prompt_cache_options": {"mode": "explicit"}}, "prompt_cache_options.mode"),
        ({"safety_identifier": 3}, "safety_identifier"),
    ],
)  # fmt: skip
async def test_what_cannot_be_done_is_refused_by_name(api: Api, fields: dict[str, Any], param: str) -> None:
    answer = await decide(api, **({"questions": [PREDICATE]} | fields))
    assert answer.status_code == (404 if param == "model" else 400), answer.text
    assert answer.json()["error"]["param"] == param
    assert api.engine.requests == []


async def test_answers_that_have_the_same_tokens_are_refused(
    serve: ApiFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve(FakeEngine(telling)) as api:
        model = api.service.model
        assert isinstance(model, ServedModel)
        monkeypatch.setattr(model.tokenizer, "encode_text", lambda text: [7])
        refused = (await decide(api, PREDICATE, COLOURS)).json()["error"]
        assert refused["param"] == "questions[0]"


async def test_a_failure_at_any_stage_is_the_answer(serve: ApiFactory) -> None:
    def failing(request: Request) -> Iterator[GenerationEvent]:
        if request.prompt_token_ids[-1] in encode("yes")[:1] + encode("no")[:1] + encode("red")[:1]:
            yield Finished(request_id=request.request_id, reason="error", stats=stats_of(request, 0, 0), error="x")
        else:
            yield from telling(request)

    async with serve(FakeEngine(failing)) as api:
        multi = {**COLOURS, "choices": [{"value": "red paint"}, {"value": "green paint"}]}
        answer = await decide(api, PREDICATE, multi)
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "generation_failed"
        assert len(api.engine.in_flight) == 0
