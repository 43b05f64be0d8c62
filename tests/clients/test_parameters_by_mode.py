"""Every field does what it says in the mode in use, or the mode refuses it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from server.api.completions.request import CompletionRequest
from tests.clients.asker import Asker
from tests.clients.conftest import MODES, STORY
from tests.clients.effects import OF_EVERY_MODE, OF_SOME_MODES, _decoding
from tests.http_helpers import ask

OTHER = {"model", "prompt", "decoding", "suffix", "find_gap_length", "stream_options", "diffusing", "priority"}
"""Fields with tests of their own: here, in test_parameters, test_streams and test_filling, and the scheduler's."""


@pytest.mark.parametrize("mode", ["speculative", "diffusion"])
@pytest.mark.parametrize("field", OF_EVERY_MODE)
def test_a_field_works_in_every_mode(http: httpx.Client, field: str, mode: str) -> None:
    """The other two modes are shown below to give what `speculative` gives."""
    OF_EVERY_MODE[field](Asker(http, "completions", mode))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("field", OF_SOME_MODES)
def test_a_field_works_in_its_modes_and_is_refused_in_the_others(http: httpx.Client, field: str, mode: str) -> None:
    modes, check = OF_SOME_MODES[field]
    asker = Asker(http, "completions", mode)
    if mode in modes:
        check(asker)
        return
    values = {"threshold": 0.5, "bound": 0.5, "edit_threshold": 0.5}
    names = {"unmasking": "factor", "remasking": "low_confidence", "editing": "speed"}
    others = {"prediction": {"type": "content", "content": "x"}, "unmasking_trace": True}
    value: Any = (values | names | others).get(field, 4)
    answer = asker.send(**{field: value}, decoding=mode)
    if (field, mode) == ("block_length", "auto"):
        assert answer.status_code == 200
        return
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field
    assert all(valid in answer.json()["error"]["message"] for valid in modes), "it says where the field has a meaning"


def test_decoding_is_what_was_asked_for(http: httpx.Client) -> None:
    _decoding(Asker(http, "completions", "auto"))


SAMPLED: list[dict[str, Any]] = [
    {"temperature": 1.2, "top_p": 0.95, "frequency_penalty": 0.5, "presence_penalty": 0.2, "seed": 21},
    {"temperature": 0.8, "top_k": 20, "min_p": 0.02, "repetition_penalty": 1.2, "seed": 22},
    {"temperature": 0, "logit_bias": {"300": 3, "301": -3}, "min_tokens": 20, "ignore_eos": True, "logprobs": 2},
    {"temperature": 1, "stop": [" the", ". "], "seed": 23, "n": 2, "echo": True},
]


@pytest.mark.parametrize("fields", SAMPLED, ids=["penalties", "filters", "bias", "stops"])
def test_exact_modes_agree(http: httpx.Client, fields: dict[str, Any]) -> None:
    """Choosing a faster mode must not change what a seed gives, whatever else is asked for."""

    def choices(mode: str) -> list[dict[str, Any]]:
        answers = Asker(http, "completions", mode).answer(**fields)["choices"]
        for answer in answers:
            for name in (
                "token_logprobs",
                "top_logprobs",
            ):  # equal but for rounding: what was computed together differs
                if answer["logprobs"]:
                    del answer["logprobs"][name]
        return list(answers)

    assert choices("ar") == choices("speculative") == choices("auto")


def test_no_field_of_the_schema_is_without_a_test() -> None:
    tested = set(OF_EVERY_MODE) | set(OF_SOME_MODES) | OTHER
    structured = {"response_format", "structured_outputs"}  # see test_openai_chat and test_parameters
    assert set(CompletionRequest.model_fields) - structured <= tested


def test_priority_is_a_number_in_bounds(http: httpx.Client) -> None:
    for priority, status in ((-5, 200), (0, 200), (2**40, 400), (1.5, 400)):
        assert ask(http, {"prompt": STORY, "max_tokens": 1, "priority": priority}).status_code == status
