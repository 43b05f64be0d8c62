"""Token ids to text, one by one: only whole characters, and no text that may turn out to begin a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from itertools import dropwhile

from server.text.token_texts import TokenTexts

CONTEXT = 4
"""Tokens before a token that its text may depend on: whether it is the first, or follows the end of a word."""
MAX_RUN = 32
"""Byte tokens in a row for whose end their text waits, since a wrong byte would spoil all of it."""
MAX_PENDING = 64
"""Tokens that wait for the end of a character, where each ends one and begins the next."""


class IncrementalDecoder:
    """Turns the tokens of an answer into text, one by one.

    The texts of all steps and of the flush together are what the tokenizer decodes all tokens to, in one call without
    control tokens. Text never changes once it has been given out. There are two exceptions. The half character that an
    answer may be cut in is left out, and does not spoil byte tokens before it. And in a row of more than MAX_RUN byte
    tokens, the whole characters before a wrong byte stay.

    The library's DecodeStream has the same purpose. It raises for byte tokens that are no characters, waits for ever
    for a U+FFFD that was meant, and knows no offsets.
    """

    def __init__(self, texts: TokenTexts, before: Sequence[int] = (), *, skip_special_tokens: bool = True) -> None:
        """before: tokens that the answer continues, whose own text is not given out."""
        kind = _ByteDecoder if texts.byte_level else _PieceDecoder
        self._form: _ByteDecoder | _PieceDecoder = kind(texts, skip_special_tokens)
        if before:
            text = [token for token in before[-16 * CONTEXT :] if not texts.is_skipped(token)]
            self._form.prime(text[-4 * CONTEXT :])

    @property
    def offset(self) -> int:
        """Where the text of the next token begins: characters so far, those held back included."""
        return self._form.offset

    def step(self, token_id: int) -> str:
        """The text this token completes; empty while a character is incomplete."""
        return self._form.step(token_id)

    def flush(self) -> str:
        """What is left at the end, without the half character the answer may have been cut in."""
        return self._form.flush()

    def preview(self, token_ids: Sequence[int]) -> str:
        """What would be given out if these tokens came next and the answer ended; half characters are U+FFFD."""
        return self._form.preview(token_ids)


class _ByteDecoder:
    """The decoder for tokenizers whose tokens are bytes of UTF-8."""

    def __init__(self, texts: TokenTexts, skip_special_tokens: bool) -> None:
        self._texts = texts
        self._skips = skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self.offset = 0

    def prime(self, before: Sequence[int]) -> None:
        for token_id in before:
            self.step(token_id)
        self.offset = 0

    def step(self, token_id: int) -> str:
        if self._skips and self._texts.is_skipped(token_id):
            return ""
        text = self._utf8.decode(self._texts.raw(token_id) or b"")
        self.offset += len(text)
        return text

    def flush(self) -> str:
        text = _wrong_rest(self._utf8)
        self._utf8.reset()
        self.offset += len(text)
        return text

    def preview(self, token_ids: Sequence[int]) -> str:
        kept = (token for token in token_ids if not (self._skips and self._texts.is_skipped(token)))
        raw = b"".join(self._texts.raw(token) or b"" for token in kept)
        return (self._utf8.getstate()[0] + raw).decode("utf-8", "replace")


class _PieceDecoder:
    """The decoder for all other tokenizers: the text of a token is how much longer the text of its context becomes.

    Byte tokens in a row (a *run*) are text only together: if all of them are UTF-8 they are that text, else each is
    U+FFFD. So a run waits for its end, until it is known to be wrong.
    """

    def __init__(self, texts: TokenTexts, skip_special_tokens: bool) -> None:
        self._texts = texts
        self._skips = skip_special_tokens
        self._given = 0  # characters given out
        self._context: list[int] = []  # the last tokens whose text is given out
        self._context_text = ""
        self._pending: list[int] = []  # tokens since then
        self._utf8 = codecs.getincrementaldecoder("utf-8")("strict")  # of the run
        self._lossy = codecs.getincrementaldecoder("utf-8")("replace")  # of tokens that may split characters
        self._chars = ""  # whole characters of the run that are pending
        self._cut = False  # the beginning of the run was given out
        self._wrong = False  # the run is no UTF-8

    @property
    def offset(self) -> int:
        if self._chars and not self._context:  # the decoder may leave out a space at the start
            return self._given + len(self._decode(self._pending[: self._whole()]))
        return self._given + len(self._chars)

    def prime(self, before: Sequence[int]) -> None:
        # Bytes from the middle of a character are left out, since its beginning may lie further back.
        for token_id in dropwhile(lambda token: (self._texts.byte_of(token) or 0) & 0xC0 == 0x80, before):
            self.step(token_id)
        self._give_whole_characters()
        self._given = 0

    def step(self, token_id: int) -> str:
        if self._skips and self._texts.is_skipped(token_id):
            return ""
        byte = self._texts.byte_of(token_id)
        text = self._end_run() + self._piece(token_id) if byte is None else self._byte(token_id, byte)
        self._given += len(text)
        return text

    def flush(self) -> str:
        text = self._give_wrong_bytes() if _wrong_rest(self._utf8) else self._give_whole_characters()
        if self._texts.may_split_characters and self._pending:
            text = self._append(self._pending)
            half = self._lossy.getstate()[0] and not _wrong_rest(self._lossy)
            text = text.removesuffix("\ufffd") if half else text
        self._pending = []
        self._given += len(text)
        return text

    def preview(self, token_ids: Sequence[int]) -> str:
        return self._decode([*self._context, *self._pending, *token_ids])[len(self._context_text) :]

    # -- inside -------------------------------------------------------------------------------------------------

    def _decode(self, token_ids: list[int]) -> str:
        return self._texts.decode(token_ids, skip_special_tokens=self._skips)

    def _append(self, token_ids: list[int]) -> str:
        """Adds tokens to the context. Returns their text."""
        self._context += token_ids
        before, self._context_text = len(self._context_text), self._decode(self._context)
        text = self._context_text[before:]
        if len(self._context) > 2 * CONTEXT:
            del self._context[:-CONTEXT]
            self._context_text = self._decode(self._context)
        return text

    def _piece(self, token_id: int) -> str:
        if not self._texts.may_split_characters:
            return self._append([token_id])
        self._pending.append(token_id)
        self._lossy.decode(self._texts.raw(token_id) or b"")
        if len(self._pending) < MAX_PENDING and self._lossy.getstate()[0]:
            return ""
        pending, self._pending = self._pending, []
        return self._append(pending)

    def _byte(self, token_id: int, byte: int) -> str:
        self._pending.append(token_id)
        if not self._wrong:
            try:
                self._chars += self._utf8.decode(bytes([byte]))
            except UnicodeDecodeError:
                self._wrong = True
        if self._wrong:
            return self._give_wrong_bytes()
        return self._give_whole_characters() if self._cut or len(self._pending) >= MAX_RUN else ""

    def _give_wrong_bytes(self) -> str:
        pending, self._pending, self._chars = self._pending, [], ""
        self._append(pending)
        return "\ufffd" * len(pending)

    def _give_whole_characters(self) -> str:
        if not self._chars:
            return ""
        whole = self._whole()
        chars, self._chars = self._chars, ""
        tokens, self._pending = self._pending[:whole], self._pending[whole:]
        text = self._append(tokens)
        cut, self._cut = self._cut, True
        return chars if cut else text  # by itself the rest of a run is not what it is within the run

    def _whole(self) -> int:
        """How many of the pending byte tokens make whole characters."""
        return len(self._pending) - len(self._utf8.getstate()[0])

    def _end_run(self) -> str:
        """The text of a pending run, now that another kind of token follows it."""
        if not self._texts.has_byte_tokens:
            return ""
        text = self._give_wrong_bytes() if self._utf8.getstate()[0] else self._give_whole_characters()
        self._utf8.reset()
        self._cut = self._wrong = False
        return text


def _wrong_rest(decoder: codecs.IncrementalDecoder) -> str:
    """The text of bytes that wait although they begin no character; empty where they do begin one.

    Python's decoder waits for the third byte of a surrogate, which is wrong by its second.
    """
    text = decoder.getstate()[0].decode("utf-8", "replace")
    return text if len(text) > 1 else ""


class StopFinder:
    """Finds the first stop string to be completed, however the text is cut up, holding back what may become one."""

    def __init__(self, stops: tuple[str, ...], *, include: bool = False) -> None:
        """include: the stop string itself is shown, as the end of the text."""
        self._stops = stops
        self._include = include
        self.held = ""
        """Text not given out, because a stop string may begin in it."""

    def feed(self, text: str, *, active: bool = True) -> tuple[str, str | None]:
        """Text that is safe to show, and the stop string that ends it, if one does: nothing after it is ever shown.

        active: a stop string that is completed in this text counts. One that only begins in it may count later.
        """
        if not self._stops:
            return text, None
        text = self.held + text
        hit = self._first_hit(text) if active else None
        if hit is not None:
            self.held = ""
            start, stop = hit
            return text[: start + len(stop)] if self._include else text[:start], stop
        keep = self._possible_start(text)
        self.held = text[keep:]
        return text[:keep], None

    def flush(self) -> str:
        """What was held back, once nothing more can come."""
        text, self.held = self.held, ""
        return text

    def _first_hit(self, text: str) -> tuple[int, str] | None:
        """Start and text of the stop string that is completed first; of several, of the one that starts first."""
        hits = [(found + len(stop), found, stop) for stop in self._stops if (found := text.find(stop)) >= 0]
        return min(hits)[1:] if hits else None

    def _possible_start(self, text: str) -> int:
        """Start of the longest end of `text` that begins a stop string."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:length]):
                    longest = length
                    break
        return len(text) - longest
