"""If these fail, a server's stream is cut or read wrongly, and times and texts with it."""

import pytest

from loadtest.records import Record
from loadtest.stream_reader import EventLines, decode, error_message, note

STREAM = b': keep-alive\r\n\r\ndata: {"a": "\xc3\xa9"}\r\n\r\nevent: x\ndata:{}\n\ndata: [DONE]\n\n'
PAYLOADS = [b'{"a": "\xc3\xa9"}', b"{}", b"[DONE]"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_the_same_however_the_network_cuts_them(size: int) -> None:
    lines = EventLines()
    found = [payload for at in range(0, len(STREAM), size) for payload in lines.feed(STREAM[at : at + size])]
    assert found == PAYLOADS


def test_text_is_found_in_all_three_shapes_and_only_of_the_first_choice() -> None:
    assert decode(b'{"choices": [{"index": 0, "text": "a"}]}').pieces() == "a"
    assert decode(b'{"choices": [{"delta": {"content": "b", "role": "assistant"}}]}').pieces() == "b"
    assert decode(b'{"choices": [{"message": {"content": "c"}}]}').pieces() == "c"
    assert decode(b'{"choices": [{"index": 1, "text": "x"}, {"index": 0, "text": "d"}]}').pieces() == "d"
    assert decode(b'{"choices": [{"delta": {"content": null}}]}').pieces() == ""
    assert decode(b'{"choices": []}').pieces() == ""


def test_usage_of_any_server_is_read_and_the_last_one_counts() -> None:
    record = Record(index=0, start_s=0.0)
    note(record, decode(b'{"usage": {"prompt_tokens": 1, "completion_tokens": 1, "prompt_tokens_details": null}}'))
    assert (record.completion_tokens, record.cached_tokens, record.passes) == (1, None, None)
    usage = b'{"prompt_tokens": 1, "completion_tokens": 8, "diffusion": {"decoding": "ar", "passes": 8, "new": []}}'
    note(record, decode(b'{"choices": [{"finish_reason": "length"}], "usage": ' + usage + b"}"))
    assert (record.completion_tokens, record.passes, record.decoding, record.finish_reason) == (8, 8, "ar", "length")


def test_error_messages_survive_any_shape_and_stay_short() -> None:
    assert error_message(b'{"error": {"message": "no\\nroom"}}') == "no room"
    assert error_message(b'{"error": "plain"}') == "plain"
    assert error_message(b"<html>bad gateway</html>") == "<html>bad gateway</html>"
    assert error_message({"message": "x" * 900}) == "x" * 200
