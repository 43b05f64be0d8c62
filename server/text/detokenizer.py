"""Token ids to text, one by one: only whole characters, and no text that may turn out to begin a stop string."""

from __future__ import annotations

from tokenizers.decoders import DecodeStream

from server.text.tokenizer import Tokenizer

MAX_PENDING = 16
"""Tokens without a whole character after which they are taken for what they are, not text: a character has 4 bytes."""


class IncrementalDecoder:
    """Turns tokens into text one by one. Control tokens have none."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._context: list[int] = []  # tokens of the last text given out: what comes next may depend on them
        self._pending: list[int] = []  # tokens since then

    @property
    def pending(self) -> list[int]:
        """Tokens whose text is not whole yet."""
        return self._pending

    def step(self, token_id: int) -> str:
        """The text this token completes; empty while a character is incomplete."""
        self._pending.append(token_id)
        text: str | None = self._stream.step(self._tokenizer.rust, token_id)
        if text is None and len(self._pending) < MAX_PENDING:
            return ""
        if text is None:
            text = self._rest()
            self._stream = DecodeStream(ids=list(self._pending), skip_special_tokens=True)
        if text:
            self._context, self._pending = self._pending, []
        return text

    def flush(self) -> str:
        """What is left at the end, without the half character the answer may have been cut in."""
        text = self._rest()
        self._pending = []
        return text[:-1] if text.endswith("\ufffd") else text

    def _rest(self) -> str:
        if not self._pending:
            return ""
        before = self._tokenizer.decode(self._context)
        return self._tokenizer.decode(self._context + self._pending)[len(before) :]


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
