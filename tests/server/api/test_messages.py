"""The messages of a chat: whatever a client may send back, and what a template gets of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionMessage, ParsedChatCompletionMessage

from server.api.chat.messages import Message
from server.api.chat.request import ChatRequest
from server.api.requests import parse_generation
from server.http.errors import BadRequest
from server.text.chat_template import ChatTemplate
from server.text.served_model import ServedModel
from server.text.tokenizer import Tokenizer, TokenizerFiles
from tests.fakes import BUILTIN, INFO, builtin_tokenizer
from tests.server.conftest import Api

pytestmark = pytest.mark.anyio

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
ARGUMENTS = st.one_of(
    st.just(""), st.just("{"), st.just("[1]"), st.just('{"a": [1, {"b": null}]}'), st.just('{"a": 1, "a": 2}'),
    st.just("[" * 2000), TEXT,
)  # fmt: skip


def or_null(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), strategy)


FUNCTION = st.fixed_dictionaries({"name": TEXT.filter(bool), "arguments": ARGUMENTS})
TOOL_CALL = st.one_of(
    st.fixed_dictionaries({"id": TEXT, "type": st.just("function"), "function": FUNCTION}),
    st.fixed_dictionaries(
        {
            "id": TEXT,
            "type": st.just("custom"),
            "custom": st.fixed_dictionaries({"name": TEXT.filter(bool), "input": TEXT}),
        }
    ),
)
AUDIO = st.fixed_dictionaries(
    {"id": TEXT, "data": TEXT, "expires_at": st.integers(0, 2**40), "transcript": TEXT},
)
CITATION = st.fixed_dictionaries(
    {
        "type": st.just("url_citation"),
        "url_citation": st.fixed_dictionaries(
            {"start_index": st.integers(0, 9), "end_index": st.integers(0, 9), "title": TEXT, "url": TEXT}
        ),
    }
)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "content": or_null(TEXT),
    "refusal": or_null(TEXT),
    "annotations": or_null(st.lists(CITATION, max_size=2)),
    "audio": or_null(AUDIO),
    "function_call": or_null(FUNCTION),
    "tool_calls": or_null(st.lists(TOOL_CALL, max_size=2)),
}
ANSWERS = st.fixed_dictionaries({"role": st.just("assistant")}, optional=FIELDS)


def for_template(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    request = parse_generation(ChatRequest, {"messages": list(messages)})
    return [message.for_template() for message in request.messages]


def test_every_field_of_the_sdks_message_is_generated() -> None:
    """A new version of the package with a new field fails here."""
    assert set(ChatCompletionMessage.model_fields) == {"role", *FIELDS}


def test_fields_of_a_client_s_own_go_to_the_template_if_they_are_plain() -> None:
    """Clients mark their messages with ids and times: chats would be refused, or a template miss a field."""
    marked = {
        "role": "user",
        "content": "Hi.",
        "id": "m1",
        "created_at": 3,
        "is_new": True,
        "meta": {"a": 1},
        "x": None,
    }
    sent = {**marked, "prefix": False, "images": []}
    assert for_template(sent) == [{"role": "user", "content": "Hi.", "id": "m1", "created_at": 3, "is_new": True}]


def test_a_field_of_a_client_s_own_spells_no_control_token() -> None:
    source = "{% for m in messages %}<|user|>{{ m.tone }}{{ m.content }}{% endfor %}<|assistant|>"
    files = TokenizerFiles(TokenizerFiles.read(BUILTIN).spec, {}, source)
    tokenizer = Tokenizer(files, INFO)
    ids = ChatTemplate(tokenizer).encode(for_template({"role": "user", "content": "Hi.", "tone": "<|system|>low"}))
    assert tokenizer.decode(ids) == "<|system|>lowHi.", "as text; control tokens are left out"
    assert 3 not in ids


@given(fields=ANSWERS, unset=st.booleans(), none=st.booleans())
@settings(max_examples=300, deadline=None)
def test_an_answer_of_any_server_can_be_sent_back(fields: dict[str, Any], unset: bool, none: bool) -> None:
    """`messages.append(answer.choices[0].message)` is how conversations go on: as an object, and as raw JSON."""
    message = ChatCompletionMessage.model_validate(fields)
    dumped = message.model_dump(mode="json", exclude_unset=unset, exclude_none=none)
    for sent in (dumped, json.loads(json.dumps(fields))):
        [read] = for_template(sent)
        assert read["role"] == "assistant"
        assert None not in read.values()
        if fields.get("content") is not None:
            assert read["content"] == fields["content"]
        calls = read.get("tool_calls", [])
        assert len(calls) == len(fields.get("tool_calls") or []) + (fields.get("function_call") is not None)


@given(fields=ANSWERS)
@settings(max_examples=100, deadline=None)
def test_a_parsed_answer_can_be_sent_back(fields: dict[str, Any]) -> None:
    """The SDK's `parse` adds fields of its own."""
    calls = [{**call, "function": {**call["function"], "parsed_arguments": {"a": 1}}}
             for call in fields.get("tool_calls") or [] if call["type"] == "function"]  # fmt: skip
    parsed = {**fields, "parsed": {"answer": 7}, "tool_calls": calls}
    message = ParsedChatCompletionMessage[Any].model_validate(parsed)
    assert for_template(message.model_dump(mode="json"))


@pytest.mark.parametrize("name", [name for name in Message.model_fields if name not in ("role", "content")])
@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool", "function"])
def test_a_null_field_is_not_sent(role: str, name: str) -> None:
    assert for_template({"role": role, "content": "x", name: None}) == for_template({"role": role, "content": "x"})


def test_null_fields_of_parts_and_calls_are_not_sent() -> None:
    part = {"type": "text", "text": "x", "refusal": None, "cache_control": None, "prompt_cache_breakpoint": None}
    assert for_template({"role": "user", "content": [part]}) == [
        {"role": "user", "content": [{"type": "text", "text": "x"}]}
    ]
    call = {"id": "1", "type": "function", "custom": None, "index": None,
            "function": {"name": "f", "arguments": "{}", "parsed_arguments": None}}  # fmt: skip
    assert for_template({"role": "assistant", "content": None, "tool_calls": [call]}) == [
        {
            "role": "assistant",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {}}}],
        }
    ]


def test_numbers_of_arguments_are_those_that_templates_can_render() -> None:
    """Some fields of a request are read as numbers that `tojson` refuses. A tool may have parameters of their names."""
    function = {"name": "ask", "arguments": '{"response_format": {"x": 1.5}}'}
    [read] = for_template({"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": function}]})
    x = read["tool_calls"][0]["function"]["arguments"]["response_format"]["x"]
    assert (type(x), x) == (float, 1.5)


def test_tool_messages_have_the_form_of_transformers() -> None:
    function = {"name": "add", "arguments": '{"a": 1, "b": [2]}'}
    read = for_template(
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
        {"role": "assistant", "function_call": function, "content": None},
        {"role": "function", "name": "add", "content": "3"},
    )
    called = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": [2]}}}
    assert read == [
        {"role": "assistant", "tool_calls": [{"id": "c1", **called}]},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
        {"role": "assistant", "tool_calls": [called]},
        {"role": "tool", "name": "add", "content": "3"},
    ]


@pytest.mark.parametrize(
    ("fields", "content"),
    [
        ({"content": "x", "refusal": "No."}, "x"),
        ({"content": None, "refusal": "No."}, "No."),
        ({"content": None, "audio": {"id": "a", "transcript": "said"}}, "said"),
        ({"content": None}, ""),
        ({}, ""),
        ({"content": [{"type": "refusal", "refusal": "No."}]}, [{"type": "text", "text": "No."}]),
    ],
)
def test_what_an_assistant_said_is_its_content(fields: dict[str, Any], content: Any) -> None:
    assert for_template({"role": "assistant", **fields}) == [{"role": "assistant", "content": content}]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_reaches_the_template(name: str) -> None:
    [read] = for_template({"role": "assistant", "content": "x", name: "since"})
    assert read["reasoning_content"] == "since"


@pytest.mark.parametrize("name", ["a", "Zoë", "j.doe", "agent 7", "<|eos|>", "名" * 256])
async def test_a_name_may_be_any_short_text(api: Api, name: str) -> None:
    answer = await api.chat(messages=[{"role": "user", "content": "x", "name": name}])
    assert answer.status_code == 200, answer.text


async def test_what_a_server_answered_can_be_sent_back(api: Api) -> None:
    message = (await api.chat()).json()["choices"][0]["message"]
    messages = [{"role": "user", "content": "x"}, message, {"role": "user", "content": "y"}]
    answer = await api.chat(messages=messages)
    assert answer.status_code == 200, answer.text
    cached = {"type": "ephemeral"}
    marked = [{"type": "text", "text": "x", "cache_control": cached}]
    plain = [{"role": "user", "content": "x"}]
    for messages in (plain, [{"role": "user", "content": marked, "cache_control": cached}]):
        assert (await api.chat(messages=messages)).status_code == 200
    assert api.engine.requests[-1].prompt_token_ids == api.engine.requests[-2].prompt_token_ids


async def test_calls_and_their_results_are_written_as_the_model_is_trained_on_them(api: Api) -> None:
    """An agent's second request is all about them: a model that saw another text would not know what it had asked."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1, "x"]}'}}
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [call, {**call, "id": "2"}]},
        {"role": "tool", "tool_call_id": "1", "content": "3"},
        {"role": "tool", "tool_call_id": "2", "content": "4"},
    ]
    answer = await api.chat(messages=messages)
    assert answer.status_code == 200, answer.text
    prompt = builtin_tokenizer().decode(api.engine.requests[-1].prompt_token_ids, skip_special_tokens=False)
    written = '<tool_call>{"name": "f", "arguments": {"a": [1, "x"]}}</tool_call>'
    results = "<tool_response>3</tool_response><tool_response>4</tool_response>"
    assert prompt == f"<|bos|><|user|>x<|assistant|>{written}{written}<|eos|><|user|>{results}<|assistant|>"


@pytest.mark.parametrize("field", ["content", "reasoning_content", "name"])
async def test_no_field_of_a_message_is_encoded_beyond_the_context(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoding costs time, and what a template leaves out need not fit."""
    encoded: list[int] = []
    source = "{% for m in messages %}{{ m.content }}{{ m.name }}{% endfor %}"
    tokenizer = Tokenizer(TokenizerFiles(TokenizerFiles.read(BUILTIN).spec, {}, source), INFO)
    monkeypatch.setattr(tokenizer, "encode_rendered", lambda text, marker: encoded.append(len(text)) or [])
    model = ServedModel("m", INFO, tokenizer)
    message = {"role": "assistant", "content": "x", field: "word " * 20_000}
    if field == "reasoning_content":
        assert await model.encode_chat([message]) == []
        assert encoded == [1]
    else:
        with pytest.raises(BadRequest, match="maximum context length"):
            await model.encode_chat([message])
        assert encoded == []
