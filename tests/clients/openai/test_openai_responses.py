"""OpenAI's Python SDK with responses. If these fail, what begins at `client.responses` cannot use this server."""

from __future__ import annotations

import typing
from typing import Any

import openai
import pydantic
import pytest
from openai.types.responses import Response, ResponseFunctionToolCall, ResponseReasoningItem
from openai.types.responses.response_create_params import ResponseCreateParamsStreaming

from tests.clients.conftest import QUESTION, TALE

ASK: dict[str, Any] = {"model": "builtin", "input": QUESTION, "temperature": 0, "max_output_tokens": 120}


class Sum(pydantic.BaseModel):
    """Adds two numbers."""

    first: int = pydantic.Field(ge=0, le=999)
    second: int = pydantic.Field(ge=0, le=999)


TOOL: Any = {"type": "function", "name": "Sum", "description": "Adds.", "parameters": Sum.model_json_schema(),
             "strict": True}  # fmt: skip

IMAGE = {"type": "input_image", "image_url": "x"}


CANNOT_MATTER: dict[str, list[Any]] = {
    "user": ["someone"],
    "service_tier": ["auto"],
    "prompt_cache_key": ["key"],
    "safety_identifier": ["id"],
    "background": [False],
    "truncation": ["disabled"],
    "top_logprobs": [0],
    "include": [[], ["reasoning.encrypted_content"]],
    "max_tool_calls": [3],
    "context_management": [[]],
    "parallel_tool_calls": [True, False],
    "reasoning": [{"effort": "low", "summary": "auto"}],
    "stream_options": [{"include_obfuscation": False}],
}
"""Values that ask for nothing that could change the text."""

REFUSED = {"access_programs", "background_options", "conversation", "image", "moderation", "prompt", "background",
           "prompt_cache_options", "prompt_cache_retention", "context_management", "truncation"}  # fmt: skip
WORK = {"model", "input", "instructions", "max_output_tokens", "metadata", "previous_response_id", "store", "stream",
        "temperature", "text", "tools", "tool_choice", "top_p"}  # fmt: skip
"""Those that a test here sends."""


def create(sdk: openai.OpenAI, **fields: Any) -> Response:
    answer = sdk.responses.create(**{**ASK, **fields})
    assert isinstance(answer, Response)
    return answer


def test_an_answer_is_that_of_a_chat(sdk: openai.OpenAI) -> None:
    answer = create(sdk, metadata={"run": "7"}, instructions="Be brief.")
    messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    chat = sdk.chat.completions.create(model="builtin", messages=messages, temperature=0, max_tokens=120)
    assert answer.output_text == chat.choices[0].message.content
    assert (answer.status, answer.object, answer.metadata) == ("completed", "response", {"run": "7"})
    assert answer.id.startswith("resp_")
    assert answer.usage is not None
    assert chat.usage is not None
    assert answer.usage.input_tokens == chat.usage.prompt_tokens
    assert answer.usage.output_tokens == chat.usage.completion_tokens
    assert answer.usage.total_tokens == chat.usage.total_tokens


def test_log_probabilities_are_those_of_the_chat(sdk: openai.OpenAI) -> None:
    asked: Any = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    messages: Any = [{"role": "user", "content": QUESTION}]
    chat = sdk.chat.completions.create(
        model="builtin", messages=messages, temperature=0, max_tokens=120, logprobs=True, top_logprobs=2
    )
    assert chat.choices[0].logprobs is not None
    assert chat.choices[0].logprobs.content is not None
    tokens = [one.token for one in chat.choices[0].logprobs.content]
    scores = pytest.approx([one.logprob for one in chat.choices[0].logprobs.content], abs=1e-3)

    def check(answer: Response) -> None:
        [message] = answer.output
        assert message.type == "message"
        [text] = message.content
        assert text.type == "output_text"
        told = text.logprobs or []
        assert [one.token for one in told] == tokens
        assert [one.logprob for one in told] == scores
        assert {len(one.top_logprobs) for one in told} == {2}

    check(create(sdk, **asked))
    with sdk.responses.create(**ASK, **asked, stream=True) as stream:
        events = list(stream)
    deltas = [one for event in events if event.type == "response.output_text.delta" for one in event.logprobs]
    assert [one.token for one in deltas] == tokens
    assert events[-1].type == "response.completed"
    check(events[-1].response)


def test_events_come_in_openais_order_and_add_up(sdk: openai.OpenAI) -> None:
    with sdk.responses.create(**ASK, stream=True) as stream:
        events = list(stream)
    kinds = [event.type for event in events]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert kinds[:4] == ["response.created", "response.in_progress", "response.output_item.added",
                         "response.content_part.added"]  # fmt: skip
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert kinds[-4:] == ["response.output_text.done", "response.content_part.done", "response.output_item.done",
                          "response.completed"]  # fmt: skip
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == text == create(sdk).output_text
    assert last.response.usage is not None
    with sdk.responses.stream(**ASK) as helper:
        helper.until_done()
        assert helper.get_final_response().output_text == text


def test_an_answer_that_is_cut_says_so(sdk: openai.OpenAI) -> None:
    answer = create(sdk, max_output_tokens=3, input=TALE)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    with sdk.responses.create(**{**ASK, "max_output_tokens": 3, "input": TALE}, stream=True) as stream:
        last = list(stream)[-1]
    assert last.type == "response.incomplete"
    assert last.response.output_text == answer.output_text


def test_parse_makes_an_object(sdk: openai.OpenAI) -> None:
    parsed = sdk.responses.parse(**ASK, text_format=Sum)
    assert isinstance(parsed.output_parsed, Sum)
    with sdk.responses.stream(**ASK, text_format=Sum) as stream:
        stream.until_done()
        assert stream.get_final_response().output_parsed == parsed.output_parsed


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "Sum"},
                                    {"type": "allowed_tools", "mode": "required",
                                     "tools": [{"type": "function", "name": "Sum"}]}])  # fmt: skip
def test_a_tool_is_called_and_its_result_answered(sdk: openai.OpenAI, choice: Any) -> None:
    """An agent's loop."""
    answer = create(sdk, tools=[TOOL], tool_choice=choice, parallel_tool_calls=False)
    [call] = answer.output
    assert isinstance(call, ResponseFunctionToolCall)
    assert Sum.model_validate_json(call.arguments)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "112"}
    turns: Any = [{"role": "user", "content": QUESTION}, call, result]
    assert create(sdk, input=turns, tools=[TOOL]).output


def test_a_streamed_call_tells_its_name_first_and_adds_up(sdk: openai.OpenAI) -> None:
    fields: dict[str, Any] = {**ASK, "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    with sdk.responses.create(**fields, stream=True) as stream:
        events = list(stream)
    added = next(event for event in events if event.type == "response.output_item.added")
    assert isinstance(added.item, ResponseFunctionToolCall)
    assert (added.item.name, added.item.arguments) == ("Sum", "")
    text = "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta")
    done = next(event for event in events if event.type == "response.function_call_arguments.done")
    assert done.arguments == text
    assert Sum.model_validate_json(text)
    strict: Any = {**openai.pydantic_function_tool(Sum)["function"], "type": "function"}
    with sdk.responses.stream(**{**fields, "tools": [strict]}) as helper:
        helper.until_done()
        [call] = helper.get_final_response().output
    assert call.type == "function_call"
    assert Sum.model_validate(call.parsed_arguments)


def test_a_stored_response_is_gone_on_from(sdk: openai.OpenAI) -> None:
    first = create(sdk, store=True, instructions="Be brief.")
    assert sdk.responses.retrieve(first.id).output_text == first.output_text
    second = create(sdk, input=TALE, previous_response_id=first.id, store=True)
    turns: Any = [{"role": "user", "content": QUESTION}, *first.output, {"role": "user", "content": TALE}]
    assert second.output_text == create(sdk, input=turns).output_text
    assert second.usage is not None
    sdk.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError, match="restarts"):
        sdk.responses.retrieve(first.id)
    with pytest.raises(openai.NotFoundError):
        sdk.responses.delete(first.id)
    third = create(sdk, previous_response_id=second.id)
    assert third.usage is not None
    assert third.usage.input_tokens > second.usage.input_tokens


def test_nothing_is_stored_unless_asked(sdk: openai.OpenAI) -> None:
    answer = create(sdk)
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(answer.id)
    with pytest.raises(openai.BadRequestError) as refused:
        create(sdk, previous_response_id=answer.id)
    assert (refused.value.param, refused.value.code) == ("previous_response_id", "previous_response_not_found")


def test_every_item_of_an_output_can_be_sent_back(sdk: openai.OpenAI) -> None:
    turns: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "Think."}]},
        ResponseReasoningItem(id="rs_1", type="reasoning", summary=[]).to_dict(),
        {"type": "reasoning", "id": "rs_2", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        *create(sdk).output,
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": QUESTION},
    ]
    assert create(sdk, input=turns).output_text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": [{"role": "user", "content": [IMAGE]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0]"),
        ({"input": []}, "input"),
        ({"input": "x" * 100_000}, "input"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [{**TOOL, "parameters": {"properties": {"x": {"not": {}}}}}]}, "tools[0].parameters"),
        ({"tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"not": {}}}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"include": ["message.output_text.logprobs"], "tools": [TOOL]}, "include"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"extra_body": {"max_tokens": 5}}, "max_tokens"),
        ({"extra_body": {"n": 2}}, "n"),
        ({"extra_body": {"response_format": {"type": "text"}}}, "response_format"),
        ({"extra_body": {"nonsense": 1}}, "nonsense"),
        ({"reasoning": {"effort": "extreme"}}, "reasoning.effort"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(sdk: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        create(sdk, **fields)
    assert refused.value.param == param
    assert "messages" not in refused.value.message


def test_decoding_fields_work(sdk: openai.OpenAI) -> None:
    texts = set()
    for mode in ("ar", "speculative", "auto"):
        answer = create(sdk, temperature=0.8, top_p=0.9, extra_body={"decoding": mode, "seed": 3, "stop": ["."]})
        usage: Any = answer.usage
        assert (usage.diffusion["decoding"], usage.diffusion["seed"]) == (mode, 3)
        texts.add(answer.output_text)
    assert len(texts) == 1


def test_every_field_of_openais_request_type_works_or_is_refused(sdk: openai.OpenAI) -> None:
    """A new version of the `openai` package with a new field fails here until the field is in one of the tables."""
    assert set(typing.get_type_hints(ResponseCreateParamsStreaming)) == WORK | REFUSED | set(CANNOT_MATTER)
    plain = create(sdk).output_text
    for field, values in CANNOT_MATTER.items():
        for value in values:
            if field == "stream_options":
                with sdk.responses.create(**ASK, stream=True, stream_options=value) as stream:
                    [last] = [event.response for event in stream if event.type == "response.completed"]
                assert last.output_text == plain
            else:
                assert create(sdk, **{field: value}).output_text == plain, field
    for field in REFUSED:
        with pytest.raises(openai.BadRequestError) as refused:
            create(sdk, **{field: {"strange": "value"}})
        assert refused.value.param == field
