"""Blocks become a chat's messages. If these fail, a model is not told what was said, or by whom."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from server.api.messages_api.blocks import InputMessage, to_messages

CALLED = {"type": "tool_use", "id": "t1", "name": "look", "input": {"place": "Oslo"}}


def test_turns_of_one_side_are_one_and_results_are_messages_of_their_own() -> None:
    """Templates refuse two turns of one side, and read a tool's result in a message of its own."""
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "Go."},
        {"role": "user", "content": [{"type": "text", "text": "Now."}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": "s"},
            {"type": "redacted_thinking", "data": "x"},
            {"type": "text", "text": "I "}, {"type": "text", "text": "look."}, CALLED, {**CALLED, "id": "t2"},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "a"}]},
            {"type": "tool_result", "tool_use_id": "t2", "content": "b", "is_error": True},
            {"type": "text", "text": "And?"},
        ]},
        {"role": "system", "content": "Be brief."},
    ]  # fmt: skip
    messages = [message.for_template() for message in to_messages([InputMessage(**turn) for turn in turns])]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool", "user", "system"]
    assert [part["text"] for part in messages[0]["content"]] == ["Go.", "Now."]
    assert (messages[1]["content"], messages[1]["reasoning_content"]) == ("I look.", "Hm.")
    assert [call["function"]["arguments"] for call in messages[1]["tool_calls"]] == [{"place": "Oslo"}] * 2
    assert [message["content"] for message in messages[2:]] == ["a", "Error: b", "And?", "Be brief."]
    assert [message["tool_call_id"] for message in messages[2:4]] == ["t1", "t2"]


TEXT = st.builds(lambda text: {"type": "text", "text": text}, st.text(max_size=8))
RESULT = st.builds(lambda text: {"type": "tool_result", "tool_use_id": "t", "content": text}, st.text(max_size=8))
THOUGHTS = st.builds(lambda text: {"type": "thinking", "thinking": text, "signature": ""}, st.text(max_size=8))
TURN = st.one_of(
    st.tuples(st.just("user"), st.lists(TEXT | RESULT, min_size=1, max_size=4)),
    st.tuples(st.just("assistant"), st.lists(TEXT | THOUGHTS | st.just(CALLED), min_size=1, max_size=4)),
)


@settings(max_examples=100, deadline=None, database=None)
@given(st.lists(TURN, min_size=1, max_size=6))
def test_no_word_is_lost_and_no_side_speaks_twice(turns: list[tuple[str, list[dict[str, Any]]]]) -> None:
    """Whatever the conversation: a model that is not told a word answers another question."""
    given_turns = [InputMessage(role=role, content=blocks) for role, blocks in turns]  # type: ignore[arg-type]
    messages = to_messages(given_turns)
    wanted = [block.get("text", block.get("content")) for _, blocks in turns for block in blocks]
    told = ""
    for message in messages:
        told += message.content if isinstance(message.content, str) else ""
        told += "".join(part.shown for part in message.content) if isinstance(message.content, list) else ""
    assert told == "".join(text for text in wanted if text is not None)
    thoughts = [block["thinking"] for _, blocks in turns for block in blocks if "thinking" in block]
    assert "".join(message.reasoning_content or "" for message in messages) == "".join(thoughts)
    assert not [one for one, other in itertools.pairwise(messages) if one.role == other.role != "tool"]
    calls = sum(block["type"] == "tool_use" for _, blocks in turns for block in blocks)
    assert sum(len(message.tool_calls or ()) for message in messages) == calls
