"""Calls of tools in generated text. If these fail, an agent runs half a call, a wrong one or none, or text is lost."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.formats.parts import AnswerText, Part, ToolCallArguments, ToolCallStart, text_of
from server.formats.registry import FORMATS
from tests.server.formats.answers import cut, parser, parts_of

PIECES = [
    '<tool_call>', '</tool_call>', '{"name": "f", "arguments": {"a": 3}}', '{"name": "g", "parameters": {}}', "\n", " ",
    "<function=f>", "</function>", "<parameter=s>", "</parameter>", "x </tool_call> y", "[TOOL_CALLS]", "[ARGS]", "f",
    '{"s": "}\\" \\\\"}', "[", "]", ", ", "; ", 'f(a=3, s="x)")', "g()", "{", "}", '"', "\\", "<|python_tag|>", "Hi.",
    '[{"name": "f", "arguments": "{}"}]', "<tool_call>\n<function=g>\n</function>\n</tool_call>", "<tool", "None", "é",
]  # fmt: skip
WHOLE = {
    "qwen3_coder": '<tool_call>\n<function=f>\n<parameter=a>\n3\n</parameter>\n<parameter=s>\nx\n"y"\n</parameter>\n'
    "</function>\n</tool_call>",
    "hermes": '<tool_call>\n{"name": "f", "arguments": {"a": 3, "s": "x\\n\\"y\\""}}\n</tool_call>',
    "mistral": '[TOOL_CALLS]f[ARGS]{"a": 3, "s": "x\\n\\"y\\""}',
    "llama3_json": '{"name": "f", "parameters": {"a": 3, "s": "x\\n\\"y\\""}}',
    "pythonic": "[f(a=3, s='x\\n\"y\"')]",
}
"""The same call in every format."""


def call(number: int, name: str, arguments: str) -> list[Part]:
    return [ToolCallStart(number, f"id{number}", name), ToolCallArguments(number, arguments)]


@pytest.mark.parametrize("name", FORMATS)
@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join), st.lists(st.integers(0, 6), max_size=40))
@settings(deadline=None)
def test_it_never_matters_where_an_answer_is_cut(name: str, text: str, widths: list[int]) -> None:
    """A diffusion model settles several tokens at once: a parser that waits for one by itself would miss it."""
    whole = parts_of(parser(name), [text])
    assert parts_of(parser(name), cut(text, widths)) == whole
    assert parts_of(parser(name), text) == whole
    if not any(isinstance(part, ToolCallStart) for part in whole):
        assert text_of(whole) == text, "text that is no call is lost"


@pytest.mark.parametrize("name", FORMATS)
def test_a_call_is_read_in_every_format(name: str) -> None:
    start, arguments = parts_of(parser(name), WHOLE[name])
    assert start == ToolCallStart(0, "id0", "f")
    assert isinstance(arguments, ToolCallArguments)
    assert json.loads(arguments.text) == {"a": 3, "s": 'x\n"y"'}


@pytest.mark.parametrize("name", FORMATS)
def test_a_call_that_is_cut_off_is_text(name: str) -> None:
    """Half a call would be run with half of its arguments."""
    whole = WHOLE[name]
    for length in range(len(whole) - len("\n</tool_call>") if "</tool_call>" in whole else len(whole)):
        assert text_of(parts_of(parser(name), [whole[:length]])) == whole[:length]


@pytest.mark.parametrize("name", FORMATS)
@given(st.lists(st.integers(0, 9), max_size=60))
@settings(deadline=None, max_examples=30)
def test_a_call_that_comes_in_pieces_adds_up_to_the_whole_one(name: str, widths: list[int]) -> None:
    """A reader of the stream would run another call than one who waits for the answer."""
    text = WHOLE[name].replace("3", "-3.5e1").replace("x", "</par é \\u0041")
    assert parts_of(parser(name, as_it_comes=True), cut(text, widths)) == parts_of(parser(name), [text])


@pytest.mark.parametrize("name", FORMATS)
def test_the_name_comes_first_and_arguments_as_they_form(name: str) -> None:
    """A client would wait for a long text, such as that of a file, until its last letter."""
    made, text, told = parser(name, as_it_comes=True), WHOLE[name], list[tuple[int, Part]]()
    for place, letter in enumerate(text):
        told += [(place, part) for part in made.feed(letter)]
    assert told[0][1] == ToolCallStart(0, "id0", "f")
    assert told[0][0] < text.index("3") < told[-1][0]
    assert len(told) >= 3
    assert text_of(made.flush()) == ""


@pytest.mark.parametrize("name", FORMATS)
def test_half_a_call_that_was_told_can_never_be_run(name: str) -> None:
    """An answer may end within a call, at its longest length. What was told must not look whole, nor come twice."""
    whole = WHOLE[name]
    complete = parts_of(parser(name), [whole])
    for length in range(len(whole) + 1):
        found = parts_of(parser(name, as_it_comes=True), whole[:length])
        if not found or isinstance(found[0], AnswerText):
            assert text_of(found) == whole[:length]
        elif found != complete:
            arguments = "".join(part.text for part in found[1:] if isinstance(part, ToolCallArguments))
            assert isinstance(complete[1], ToolCallArguments)
            assert complete[1].text.startswith(arguments)
            assert text_of(found) == ""
            with pytest.raises(ValueError, match=r"Expecting|Unterminated|Invalid"):
                json.loads(arguments)


def test_only_what_a_grammar_holds_is_told_as_it_comes() -> None:
    """A call that turns out to be none would have been told."""
    for name, text in {
        "hermes": '<tool_call>{"arguments": {"a": 3}, "name": "f"',
        "llama3_json": '<|python_tag|>{"name": "f", "parameters": {"a": 3',
        "mistral": '[TOOL_CALLS]h[ARGS]{"a": 3',
        "qwen3_coder": "<tool_call>\n<function=loose>\n<parameter=a>\n3\n</parameter>\n",
    }.items():
        made = parser(name, as_it_comes=True)
        assert made.feed(text) == [], name
        assert text_of(made.flush()) == text, name


@pytest.mark.parametrize("name", ["qwen3_coder", "hermes", "mistral"])
def test_text_around_calls_stays_text(name: str) -> None:
    found = parts_of(parser(name), ["I look. \n" + WHOLE[name] + "\n" + WHOLE[name] + "\n Done.\n"])
    assert found[0] == AnswerText("I look.")
    assert [part.name for part in found if isinstance(part, ToolCallStart)] == ["f", "f"]
    assert found[-1] == AnswerText("Done.\n")


@pytest.mark.parametrize(
    ("name", "text", "calls"),
    [
        ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]', 2),
        ("llama3_json", '<|python_tag|>{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}', 2),
        ("pythonic", "[f(s='(', any=[1, {'b': None}, True]), g()]", 2),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"s": "</tool_call>"}}</tool_call>', 1),
        ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', 1),
        ("hermes", '<tool_call>{"name": "f"}', 1),
        ("hermes", '<tool_call> no <tool_call>{"name": "f"}</tool_call>', 1),
        ("qwen3_coder", "<tool_call><function=g></function></tool_call>", 1),
    ],
)  # fmt: skip
def test_what_models_write_beside_the_usual_form(name: str, text: str, calls: int) -> None:
    assert sum(isinstance(part, ToolCallStart) for part in parts_of(parser(name), text)) == calls


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>'),
        ("hermes", '<tool_call>{"name": 3, "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": ' + "[" * 500),
        ("qwen3_coder", "<tool_call><function=h></function></tool_call>"),
        ("qwen3_coder", "<tool_call><function=f><parameter=a>1</parameter><parameter=a>2</parameter></function>"),
        ("mistral", "[TOOL_CALLS]f(a=1)"),
        ("llama3_json", 'Then {"name": "f", "parameters": {}}'),
        ("llama3_json", '{"a": 1} is JSON.'),
        ("pythonic", "[f(a=other)]"),
        ("pythonic", "[f(a={1, 2})]"),
        ("pythonic", "[A link](http://example.org)"),
    ],
)  # fmt: skip
def test_what_is_no_call_of_a_tool_of_the_request_is_text(name: str, text: str) -> None:
    """A client would look for a function that it never offered, or fail on arguments that are no object."""
    assert parts_of(parser(name), [text]) == [AnswerText(text)]


def test_calls_beyond_the_limit_are_text() -> None:
    text = '<tool_call>{"name": "f"}</tool_call>'
    assert parts_of(parser("hermes", most=1), [text + text]) == [*call(0, "f", "{}"), AnswerText(text)]


def test_arguments_of_tags_have_the_types_of_the_schema() -> None:
    values = {"s": "3", "a": "3", "any": "True"}
    tags = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    found = parts_of(parser("qwen3_coder"), f"<tool_call>\n<function=f>\n{tags}</function>\n</tool_call>")
    assert found == call(0, "f", '{"s": "3", "a": 3, "any": true}')
