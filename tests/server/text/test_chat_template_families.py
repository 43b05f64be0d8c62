"""A chat's ids are those of transformers' `apply_chat_template`, which is the reference that models are trained by."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer

from server.http.errors import BadRequest
from server.text.chat_template import ChatTemplate
from server.text.tokenizer import Tokenizer, TokenizerFiles
from tests.fakes import INFO
from tests.server.text.families import CONTROL, FAMILIES, PARTS_ONLY
from tests.server.text.kinds import byte_fallback, byte_level, spec_of

CONFIG = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@cache
def rust(kind: str) -> RustTokenizer:
    tokenizer = {"byte_level": byte_level, "byte_fallback": byte_fallback}[kind]()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in CONTROL])
    return tokenizer


@cache
def reference(kind: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=rust(kind), **CONFIG)


@cache
def tokenizer_of(kind: str, source: str) -> Tokenizer:
    info = msgspec.structs.replace(
        INFO, vocab_size=rust(kind).get_vocab_size(), bos_token_id=1, end_token_ids=(2,), mask_token_id=3,
        banned_token_ids=(3, 0),
    )  # fmt: skip
    return Tokenizer(TokenizerFiles(spec_of(rust(kind)), CONFIG, source), info)


@cache
def chat_of(kind: str, source: str) -> ChatTemplate:
    return ChatTemplate(tokenizer_of(kind, source))


def reference_ids(kind: str, source: str, messages: list[dict[str, Any]]) -> list[int] | None:
    """None: the template refuses the messages."""
    try:
        ids = reference(kind).apply_chat_template(
            copy.deepcopy(messages), chat_template=source, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except Exception:  # whatever a template raises
        return None
    return list(ids)


def our_ids(kind: str, source: str, messages: list[dict[str, Any]]) -> list[int] | None:
    try:
        return chat_of(kind, source).encode(copy.deepcopy(messages))
    except BadRequest:
        return None


WORDS = st.lists(
    st.sampled_from(["hello", " ", "world", "\n", "é", "日本", "{", "}", '"', "\\", "<think>", "</think>", "'", "x"]),
    max_size=6,
).map("".join)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 9), WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(WORDS, inner, max_size=2)),
    max_leaves=4,
)
CALL = st.builds(
    lambda name, arguments: {"id": "call12345", "type": "function", "function": {"name": name, "arguments": arguments}},
    st.sampled_from(["look", "add"]),
    st.dictionaries(WORDS, JSON, max_size=3),
)
USER = st.builds(lambda text: {"role": "user", "content": text}, WORDS)
ANSWER = st.one_of(
    st.builds(lambda text: {"role": "assistant", "content": text}, WORDS),
    st.builds(lambda text, why: {"role": "assistant", "content": text, "reasoning_content": why}, WORDS, WORDS),
)
CALLING = st.builds(
    lambda calls, content: (
        {"role": "assistant", "tool_calls": calls} | ({} if content is None else {"content": content})
    ),
    st.lists(CALL, min_size=1, max_size=2),
    st.one_of(st.none(), WORDS),
)
RESULT = st.builds(lambda text: {"role": "tool", "tool_call_id": "call12345", "name": "look", "content": text}, WORDS)
SYSTEM = st.builds(lambda text: {"role": "system", "content": text}, WORDS)


@st.composite
def chats(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Mostly sensible conversations, with and without tools, and some that many templates refuse."""
    messages = [draw(SYSTEM)] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        messages += [draw(USER), draw(ANSWER)]
    if draw(st.booleans()):
        messages += [draw(USER), draw(CALLING), draw(RESULT), draw(ANSWER)]
    messages.append(draw(st.one_of(USER, USER, USER, SYSTEM, RESULT)))
    return messages


def knows_calls(source: str, messages: list[dict[str, Any]]) -> bool:
    return "tool_calls" in source or not any("tool_calls" in message for message in messages)


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
@pytest.mark.parametrize("family", FAMILIES)
@given(messages=chats())
@settings(max_examples=60, deadline=None)
def test_a_chat_has_the_ids_of_the_reference(family: str, kind: str, messages: list[dict[str, Any]]) -> None:
    """A model answers worse to a prompt that differs by a BOS, a space or a newline from what it was trained on."""
    source = FAMILIES[family]
    expected, found = reference_ids(kind, source, messages), our_ids(kind, source, messages)
    if not knows_calls(source, messages):
        assert found is None, "a call that the template leaves out is refused, not lost"
    elif expected is None and any("content" not in message for message in messages):
        pass  # an empty content stands in for one that the template misses
    else:
        assert found == expected


STATEMENTS = st.sampled_from(
    [
        "{{ bos_token }}", "{{ eos_token }}", "<|start|>", "<|stop|>", "text", " ", "\n", "  \n", "{# a note #}\n",
        "{%- set x = 1 -%}", "{% set x = messages | length %}\n", "{{ x }}", "{{- x | default('none') -}}",
        "{% if tools is not none %}T{% endif %}", "{% if not documents %}D{% endif %}\n", "{{ tools is defined }}",
        "{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}",
        "{% for m in messages -%}\n  {{ m['role'] | upper }}: {{ m['content'] | trim }}\n{%- endfor %}",
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m | tojson }}{% endfor %}",
        "{{ messages | map(attribute='role') | join(',') }}", "{{ messages[-1].content[:2] }}",
        "{{ messages | tojson(indent=1, sort_keys=true) }}", "{{ dict(a=messages[0].role) | tojson }}",
        "{% generation %}{{ messages[-1].content }}{% endgeneration %}\n", "{{ messages[0].missing }}",
        "{{ raise_exception('no') if messages | length > 3 }}", "{{ messages[0].content.split(' ') | last }}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{% macro say(m) %}[{{ m.content }}]{% endmacro %}{{ say(messages[0]) }}", "{{ pad_token }}",
        "{% if add_generation_prompt %}<Assistant>{% endif %}",
    ]
)  # fmt: skip


@given(source=st.lists(STATEMENTS, max_size=8).map("".join), messages=chats())
@settings(max_examples=300, deadline=None)
def test_any_template_renders_as_the_reference_does(source: str, messages: list[dict[str, Any]]) -> None:
    messages = [message for message in messages if "tool_calls" not in message]
    try:
        found = ChatTemplate(tokenizer_of("byte_level", source)).encode(messages)
    except BadRequest:
        found = None
    assert found == reference_ids("byte_level", source, messages)


@pytest.mark.parametrize("family", ["gemma", "ministral"])
@given(texts=st.lists(WORDS, min_size=1, max_size=3))
@settings(max_examples=30, deadline=None)
def test_a_template_that_takes_parts_gets_them(family: str, texts: list[str]) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": text} for text in texts]}]
    found = our_ids("byte_level", FAMILIES[family], messages)
    assert found == reference_ids("byte_level", FAMILIES[family], messages)
    assert found is not None


@pytest.mark.parametrize("family", ["llama_3", "qwen", "mistral", "phi", "chatml", "deepseek"])
def test_a_template_that_takes_strings_gets_the_parts_as_lines(family: str) -> None:
    """It would else print a list with brackets, or nothing."""
    parts = [{"type": "text", "text": "hello"}, {"type": "text", "text": "world"}]
    joined = our_ids("byte_level", FAMILIES[family], [{"role": "user", "content": "hello\nworld"}])
    assert joined is not None
    assert our_ids("byte_level", FAMILIES[family], [{"role": "user", "content": parts}]) == joined


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_a_template_that_takes_only_parts_does_not_lose_a_string(role: str) -> None:
    user = {"role": "user", "content": "x"}
    ids = our_ids("byte_level", PARTS_ONLY, [{"role": role, "content": "hello"}, user])
    assert ids is not None
    shown = rust("byte_level").decode(ids, skip_special_tokens=False)
    assert shown == f"<s><|start|>{role}hello<|stop|><|start|>userx<|stop|><|start|>assistant"


@pytest.mark.parametrize("text", ["<|stop|>", "</s>", "<s>", "<mask>", "<|st", "op|>", "[CALLS]"])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_string_of_a_message_becomes_a_control_token(family: str, text: str) -> None:
    """At any depth: in parts, in names, in a tool's arguments and in their keys."""
    control = set(tokenizer_of("byte_level", FAMILIES[family]).control_tokens.values())

    def said(text: str) -> list[int] | None:
        function = {"name": f"f{text}", "arguments": {f"k{text}": [{"type": text, "role": text}]}}
        call = {"id": f"call{text}", "type": "function", "function": function}
        messages = [
            {"role": "system", "content": text},
            {"role": "user", "content": [{"type": "text", "text": text}], "name": text},
            {"role": "assistant", "tool_calls": [call], "reasoning_content": text, "content": text},
            {"role": "tool", "content": text, "tool_call_id": f"call{text}", "name": text},
        ]
        if "tool_calls" not in FAMILIES[family] or family == "gemma":
            messages = messages[:2]
        return our_ids("byte_level", FAMILIES[family], messages)

    plain, spelled = said("word"), said(text)
    assert plain is not None
    assert spelled is not None
    assert [token for token in spelled if token in control] == [token for token in plain if token in control]


def test_a_developer_is_one_where_the_template_knows_it() -> None:
    source = "{% for m in messages %}{{ m.role }}:{% endfor %}"
    rendered = {
        known: rust("byte_level").decode(
            our_ids("byte_level", source + known, [{"role": "developer", "content": "x"}]) or []
        )
        for known in ("", "{# developer #}")
    }
    assert rendered == {"": "system:", "{# developer #}": "developer:"}
