"""Text as it comes: whole characters, and stop strings however the text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.text.detokenizer import MAX_RUN, IncrementalDecoder, StopFinder
from server.text.token_texts import TokenTexts
from tests.fakes import builtin_tokenizer
from tests.server.text.kinds import KINDS, SPECIAL, spec_of

TOKENIZER = builtin_tokenizer()
RUST = {name: make() for name, make in KINDS.items()}
TEXTS = {name: TokenTexts(rust, spec_of(rust), {text: token for token, text in enumerate(SPECIAL)})
         for name, rust in RUST.items()}  # fmt: skip
BYTES = ("byte_fallback", "gemma", "metaspace_bytes")
"""The kinds that write a character outside the vocabulary with a token for each byte."""


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=40))
@settings(max_examples=200, deadline=None)
def test_the_pieces_put_together_are_the_text(text: str) -> None:
    """Otherwise a stream and an answer would differ."""
    decoder = IncrementalDecoder(TOKENIZER.texts)
    pieces = [decoder.step(token) for token in TOKENIZER.encode_text(text)]
    assert "".join(pieces) + decoder.flush() == text
    assert all("\ufffd" not in piece for piece in pieces)


def test_an_answer_cut_inside_a_character_ends_before_it() -> None:
    """Half a character is not text; clients show it as garbage."""
    decoder = IncrementalDecoder(TOKENIZER.texts)
    ids = TOKENIZER.encode_text("ab😀")
    assert "".join(decoder.step(token) for token in ids[:-1]) + decoder.flush() == "ab"


def test_control_tokens_have_no_text() -> None:
    decoder = IncrementalDecoder(TOKENIZER.texts)
    assert [decoder.step(token) for token in [*TOKENIZER.encode_text("a"), 4, 2, *TOKENIZER.encode_text("b")]] == [
        "a", "", "", "b",
    ]  # fmt: skip


def test_bytes_that_never_become_a_character_do_not_hold_the_stream_up() -> None:
    """A model that stutters half characters must not make the stream wait for its end, nor cost ever more a token."""
    half = TOKENIZER.encode_text("😀")[0]
    decoder = IncrementalDecoder(TOKENIZER.texts)
    pieces = [decoder.step(half) for _ in range(100)]
    assert sum(len(piece) for piece in pieces) > 60
    assert decoder.step(TOKENIZER.encode_text("a")[0]).endswith("a")


@st.composite
def token_ids(draw: st.DrawFn, name: str, max_size: int = 40) -> list[int]:
    """Any ids: of any piece, of few pieces that repeat, and more often of pieces that matter to decoders."""
    size = RUST[name].get_vocab_size()
    texts = [
        "\ufffd",
        "▁",
        " ",
        "\u0120",
        "é",
        "<0xC3>",
        "<0xA9>",
        "<0xE2>",
        "<0x41>",
        "<0x20>",
        "<0xFF>",
        "##ok",
        ".",
        "o</w>",
    ]
    known = [token for text in texts if (token := RUST[name].token_to_id(text)) is not None]
    one = st.one_of(st.integers(0, size + 1), st.sampled_from([*known, 1, 2, 4]))
    few = st.lists(one, min_size=1, max_size=4).flatmap(lambda pool: st.lists(st.sampled_from(pool), max_size=max_size))
    return draw(st.one_of(st.lists(one, max_size=max_size), few))


def half_character(name: str, ids: list[int]) -> int:
    """How many tokens at the end are the beginning of a character."""
    texts = TEXTS[name]
    shown = [token for token in ids if not texts.is_skipped(token)]
    for length in (1, 2, 3):
        raw = bytes(byte for token in shown[-length:] for byte in texts.token_bytes(token) or [])
        if not raw or len(raw) > 3 or raw[0] < 0xC2:
            continue
        try:
            raw.decode()
        except UnicodeDecodeError as exc:
            if exc.start == 0 and exc.reason == "unexpected end of data":
                return length
    return 0


def expected(name: str, ids: list[int]) -> set[str]:
    """What an answer of these tokens may read: the library's text, with or without the half character it ends in."""
    whole = RUST[name].decode(ids, skip_special_tokens=True)
    half = half_character(name, ids)
    shown = [token for token in ids if not TEXTS[name].is_skipped(token)]
    return {whole, whole.removesuffix("\ufffd") if half else whole, RUST[name].decode(shown[: len(shown) - half])}


@pytest.mark.parametrize("name", KINDS)
@given(data=st.data())
@settings(max_examples=250, deadline=None)
def test_an_answer_is_what_the_library_decodes(name: str, data: st.DataObject) -> None:
    """Decoding never fails, never repeats and never loses, whatever a model says."""
    ids = data.draw(token_ids(name))
    decoder = IncrementalDecoder(TEXTS[name])
    text, offsets = "", []
    for token in ids:
        offsets.append(decoder.offset)
        text += decoder.step(token)
        assert len(text) <= decoder.offset
    text += decoder.flush()
    assert text in expected(name, ids)
    assert offsets == sorted(offsets)
    assert all(offset <= len(text) for offset in offsets)


@pytest.mark.parametrize("name", KINDS)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_an_answer_continues_its_prompt(name: str, data: st.DataObject) -> None:
    """A first word keeps its space, and a character may begin in the prompt."""
    before, ids = data.draw(token_ids(name, 6)), data.draw(token_ids(name, 12))
    shown = [token for token in before if not TEXTS[name].is_skipped(token)]
    if half_character(name, before) or (shown and TEXTS[name].byte_of(shown[-1]) is not None):
        before = [*before, RUST[name].token_to_id("x")]
    decoder = IncrementalDecoder(TEXTS[name], before)
    text = "".join(decoder.step(token) for token in ids) + decoder.flush()
    whole = RUST[name].decode(before)
    assert whole + text in expected(name, before + ids)


@pytest.mark.parametrize("name", ["byte_level", *BYTES])
def test_the_start_of_a_surrogate_is_no_half_character(name: str) -> None:
    """It is wrong by its second byte. Python's decoder waits for the third, and the end of the answer would be lost."""
    wrong = {
        byte: token for token in range(RUST[name].get_vocab_size()) if (byte := single_byte(name, token)) is not None
    }
    ids = [wrong[0xED], wrong[0xA0]]
    decoder = IncrementalDecoder(TEXTS[name])
    assert "".join(map(decoder.step, ids)) + decoder.flush() == RUST[name].decode(ids) == "\ufffd\ufffd"


def single_byte(name: str, token: int) -> int | None:
    """The byte that a token stands for; None if it stands for none or for several."""
    raw = None if TEXTS[name].is_skipped(token) else TEXTS[name].token_bytes(token)
    return raw[0] if raw and len(raw) == 1 else None


@pytest.mark.parametrize("name", ["byte_level", *BYTES])
def test_an_answer_completes_the_character_that_its_prompt_ends_in(name: str) -> None:
    """A client that lets an answer go on by its ids would lose the character that the first answer was cut in."""
    ids = RUST[name].encode("x日本", add_special_tokens=False).ids
    for cut in range(1, len(ids)):
        first = IncrementalDecoder(TEXTS[name])
        text = "".join(map(first.step, ids[:cut])) + first.flush()
        second = IncrementalDecoder(TEXTS[name], ids[:cut])
        assert text + "".join(map(second.step, ids[cut:])) + second.flush() == RUST[name].decode(ids)


@pytest.mark.parametrize("name", KINDS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_look_ahead_changes_nothing(name: str, data: st.DataObject) -> None:
    ids, ahead = data.draw(token_ids(name)), data.draw(token_ids(name, 6))
    plain, looking = IncrementalDecoder(TEXTS[name]), IncrementalDecoder(TEXTS[name])
    for token in ids:
        looking.preview(ahead)
        assert looking.step(token) == plain.step(token)


@pytest.mark.parametrize("name", KINDS)
def test_every_token_has_a_text_and_bytes(name: str) -> None:
    """Log-probabilities list any token of the vocabulary."""
    texts = TEXTS[name]
    for token in range(RUST[name].get_vocab_size() + 2):
        assert isinstance(texts.token_text(token), str)
        assert isinstance(texts.display(token), str)
        raw = texts.token_bytes(token)
        assert raw is None or all(0 <= byte < 256 for byte in raw)


@pytest.mark.parametrize("name", ["byte_fallback", "metaspace_bytes", "unigram", "gemma"])
def test_the_texts_of_tokens_put_together_are_the_text(name: str) -> None:
    """Clients join the tokens that log-probabilities list; only the space that stands for no character is too much."""
    ids = RUST[name].encode("x hello world ok", add_special_tokens=False).ids
    assert "".join(map(TEXTS[name].token_text, ids)).removeprefix(" ") == "x hello world ok"


@pytest.mark.parametrize("name", KINDS)
def test_a_character_that_says_it_is_none_is_text(name: str) -> None:
    """U+FFFD may be in the vocabulary, and stands in many texts that models have read."""
    text = "ok\ufffd"
    ids = RUST[name].encode(text, add_special_tokens=False).ids
    decoder = IncrementalDecoder(TEXTS[name])
    assert "".join(map(decoder.step, ids)) + decoder.flush() == RUST[name].decode(ids)


@pytest.mark.parametrize("name", ["byte_level", *BYTES])
def test_a_control_token_does_not_break_a_character(name: str) -> None:
    first, *rest = RUST[name].encode("日本", add_special_tokens=False).ids
    decoder = IncrementalDecoder(TEXTS[name])
    text = "".join(decoder.step(token) for token in [first, *[2] * 20, *rest]) + decoder.flush()
    assert text == "日本"


@pytest.mark.parametrize("name", BYTES)
def test_a_long_run_of_byte_tokens_still_streams(name: str) -> None:
    """A text in a script outside the vocabulary would else arrive at its end, all at once."""
    ids = [RUST[name].token_to_id(f"<0x{byte:02X}>") for byte in ("語" * 100).encode()]
    decoder = IncrementalDecoder(TEXTS[name])
    pieces = [decoder.step(token) for token in ids]
    assert all(len("".join(pieces[:end]).encode()) > end - MAX_RUN - 3 for end in range(len(ids)))
    assert "".join(pieces) + decoder.flush() == "語" * 100
    wrong = RUST[name].token_to_id("<0xFF>")
    again = IncrementalDecoder(TEXTS[name])
    assert "".join(map(again.step, [*ids, wrong, wrong])) + again.flush() == "語" * 100 + "\ufffd" * 2


@pytest.mark.parametrize("name", KINDS)
def test_a_long_answer_costs_the_same_for_each_token(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No token is decoded again and again."""
    decoded = []
    plain = TEXTS[name].decode
    monkeypatch.setattr(TEXTS[name], "decode", lambda ids, **options: decoded.append(len(ids)) or plain(ids, **options))
    decoder = IncrementalDecoder(TEXTS[name])
    size = RUST[name].get_vocab_size()
    for number in range(2000):
        decoder.step(number * 7919 % size)
    assert sum(decoded) < 2000 * 16
    assert max(decoded, default=0) <= 64 + 8


def run(stops: tuple[str, ...], pieces: list[str]) -> tuple[str, bool]:
    finder = StopFinder(stops)
    shown = ""
    for piece in pieces:
        safe, hit = finder.feed(piece)
        shown += safe
        if hit:
            return shown, True
    return shown + finder.flush(), False


def first_completed(stops: tuple[str, ...], text: str) -> tuple[str, bool]:
    """The definition, letter by letter."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


@given(
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=4).map(tuple),
    st.lists(st.text("abc", max_size=5), max_size=8),
)
@settings(max_examples=500, deadline=None)
def test_a_stop_string_is_found_however_the_text_is_cut(stops: tuple[str, ...], pieces: list[str]) -> None:
    """The same answer must end at the same place, streamed or not, in blocks of any length."""
    assert run(stops, pieces) == first_completed(stops, "".join(pieces))


@given(st.lists(st.text("ab", max_size=3), max_size=8))
def test_nothing_is_shown_that_a_stop_string_takes_away(pieces: list[str]) -> None:
    finder, shown = StopFinder(("abab",)), ""
    for piece in pieces:
        safe, hit = finder.feed(piece)
        shown += safe
        if hit:
            break
    assert "abab" not in shown
    assert "".join(pieces).startswith(shown)


def test_only_what_could_become_a_stop_string_is_held_back() -> None:
    finder = StopFinder(("\n\nUser:",))
    assert finder.feed("Hello\n\nUs") == ("Hello", None)
    assert finder.feed("ually") == ("\n\nUsually", None)


@pytest.mark.parametrize("stops", [(), ("z",)])
def test_text_without_stops_passes_at_once(stops: tuple[str, ...]) -> None:
    assert StopFinder(stops).feed("abc") == ("abc", None)


def test_a_stop_string_counts_once_it_may() -> None:
    """`min_tokens`: one that is completed before is text, one that only begins before ends the answer."""
    finder = StopFinder(("ab",))
    assert finder.feed("ab a", active=False) == ("ab ", None)
    assert finder.feed("b.") == ("", "ab")


def test_a_stop_string_can_be_part_of_the_text() -> None:
    assert StopFinder(("END",), include=True).feed("the END.") == ("the END", "END")
