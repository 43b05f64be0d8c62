"""OpenAI's Python SDK with tools. If these fail, an agent cannot call its tools, or reads a call that is not one."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import openai
import pydantic
import pytest
from openai.types.chat import ChatCompletion

from tests.clients.conftest import QUESTION

EXACT = ("ar", "speculative", "auto")


class Sum(pydantic.BaseModel):
    """Adds two numbers."""

    first: int = pydantic.Field(ge=0, le=999)
    second: int = pydantic.Field(ge=0, le=999)


TOOL = openai.pydantic_function_tool(Sum)
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
ASK: dict[str, Any] = {"model": "builtin", "messages": MESSAGES, "temperature": 0, "max_tokens": 120, "tools": [TOOL]}
SCHEMAS: list[dict[str, Any]] = [
    {"place": {"type": "string", "maxLength": 6}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    {"unit": {"enum": ["C", "F"]}, "when": {"type": "string", "format": "date"}},
    {"point": {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"]}},
    {"tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 2}},
    {"sure": {"type": "boolean"}, "none": {"type": "null"}},
]
"""The properties of tools of many kinds."""


def create(sdk: openai.OpenAI, **fields: Any) -> ChatCompletion:
    answer = sdk.chat.completions.create(**{**ASK, **fields})
    assert isinstance(answer, ChatCompletion)
    return answer


def test_parse_makes_an_object_of_the_arguments(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.parse(**ASK, tool_choice="required", parallel_tool_calls=False)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls is not None
    [call] = choice.message.tool_calls
    assert call.id.startswith("call_")
    assert isinstance(call.function.parsed_arguments, Sum)


def test_a_stream_tells_id_and_name_first_and_adds_up_to_the_answer(sdk: openai.OpenAI) -> None:
    fields: Any = {**ASK, "tool_choice": "required", "parallel_tool_calls": False}
    with sdk.chat.completions.create(**fields, stream=True) as chunks:
        deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    calls = [call for delta in deltas for call in delta.tool_calls or []]
    first, *others = calls
    assert deltas[0].role == "assistant"
    assert first.id
    assert first.function is not None
    assert first.function.name == "Sum"
    assert all(call.id is None and call.function and call.function.name is None for call in others)
    text = "".join(call.function.arguments or "" for call in calls if call.function)
    with sdk.chat.completions.stream(**fields) as stream:
        whole = stream.get_final_completion().choices[0]
    assert whole.finish_reason == "tool_calls"
    assert whole.message.tool_calls is not None
    assert whole.message.tool_calls[0].function.arguments == text
    assert Sum.model_validate_json(text)


@pytest.mark.parametrize("properties", SCHEMAS)
def test_a_required_call_is_valid_and_the_same_in_every_exact_mode(
    sdk: openai.OpenAI, properties: dict[str, Any]
) -> None:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    tools = [{"type": "function", "function": {"name": "use", "parameters": schema}}]
    seen = set()
    for mode in EXACT:
        answer = create(
            sdk, tools=tools, tool_choice="required", parallel_tool_calls=False, temperature=0.7, seed=5,
            extra_body={"decoding": mode},
        )  # fmt: skip
        [call] = answer.choices[0].message.tool_calls or []
        assert call.type == "function"
        assert jsonschema_rs.is_valid(schema, json.loads(call.function.arguments))
        seen.add(call.function.arguments)
    assert len(seen) == 1


def test_text_is_answered_as_ever_where_no_tool_has_to_be_called(sdk: openai.OpenAI) -> None:
    loose = {"type": "function", "function": {**TOOL["function"], "strict": None}}
    for mode in (*EXACT, "diffusion"):
        message = create(sdk, tools=[loose], extra_body={"decoding": mode}).choices[0].message
        assert message.tool_calls is None
        assert message.content


def test_a_result_is_answered(sdk: openai.OpenAI) -> None:
    """The second request of every agent's loop."""
    message = create(sdk, tool_choice="required", parallel_tool_calls=False).choices[0].message
    assert message.tool_calls is not None
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "112"}
    answer = create(sdk, messages=[*MESSAGES, message, result])
    assert answer.choices[0].message.content is not None or answer.choices[0].message.tool_calls


def test_half_a_call_is_never_told(sdk: openai.OpenAI) -> None:
    for max_tokens in (1, 8, 20, 30):
        choice = create(sdk, tool_choice="required", max_tokens=max_tokens).choices[0]
        assert choice.finish_reason == "length"
        for call in choice.message.tool_calls or []:
            assert call.type == "function"
            assert Sum.model_validate_json(call.function.arguments)
        assert choice.message.tool_calls or choice.message.content


BAD = {"not": {}}


def _tool(number: int, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": f"f{number}", **fields}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [_tool(1), _tool(1)]}, "tools[1].function.name"),
        ({"tools": [_tool(number) for number in range(1000)]}, "tools"),
        ({"tools": [_tool(1), _tool(2, parameters={"properties": {"x": BAD}})]}, "tools[1].function.parameters"),
        ({"tools": [_tool(1, parameters={"type": "array"})]}, "tools[0].function.parameters"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"extra_body": {"diffusing": True, "stream": True}}, "tools"),
        ({"extra_body": {"chat_template_kwargs": {"chat_template": "x"}}}, "chat_template_kwargs.chat_template"),
        ({"extra_body": {"chat_template_kwargs": {"a": []}}}, "chat_template_kwargs"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(sdk: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        create(sdk, **fields)
    assert refused.value.param == param
    message = [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": 3}}]}]
    with pytest.raises(openai.BadRequestError, match="arguments"):
        create(sdk, messages=[*MESSAGES, *message])
