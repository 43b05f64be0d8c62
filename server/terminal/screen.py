"""The display of `--watch`: settled text plain, drafts in the colour of their confidence, masks as shaded cells."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from server.terminal.completion_client import Answer, Draft, Prompt

MASK = "\u2592"
MASK_STYLE = "bright_black"
UNSCORED_STYLE = "cyan"
"""A draft token that was not chosen by a confidence."""
REJECTED_STYLE = "strike bright_black"

_UNSURE, _LIKELY, _SURE = (224, 82, 82), (214, 168, 62), (92, 184, 112)


def printable(text: str) -> str:
    """Text without control characters, but for line ends and tabs: visible symbols stand for them."""
    return "".join(_picture(char) if ord(char) < 32 or 127 <= ord(char) < 160 else char for char in text)


def _picture(char: str) -> str:
    if char in "\n\t":
        return char
    return chr(0x2400 + ord(char)) if ord(char) < 32 else "\u2421" if char == "\x7f" else "\ufffd"


def confidence_style(confidence: float) -> str:
    """From red by way of amber to green."""
    low, high, share = (_UNSURE, _LIKELY, confidence * 2) if confidence < 0.5 else (_LIKELY, _SURE, confidence * 2 - 1)
    red, green, blue = (round(a + (b - a) * min(max(share, 0.0), 1.0)) for a, b in zip(low, high, strict=True))
    return f"italic rgb({red},{green},{blue})"


def draft_text(draft: Draft) -> Text:
    """A draft in colour. Its text may begin with characters that are settled but held back, and may end early."""
    shown = [MASK if token.text is None else token.text for token in draft.tokens]
    joined = "".join(shown)
    held = next(start for start in range(len(draft.text) + 1) if joined.startswith(draft.text[start:]))
    result = Text(printable(draft.text[:held]), "italic")
    left = len(draft.text) - held
    for token, text in zip(draft.tokens, shown, strict=True):
        if token.text is None:
            style = MASK_STYLE
        else:
            style = UNSCORED_STYLE if token.confidence is None else confidence_style(token.confidence)
        result.append(printable(text[:left]), style)
        left -= len(text[:left])
    return result


def answer_text(answer: Answer) -> Text:
    """Everything that is shown of an answer: settled text, draft, rejected text."""
    text = Text(printable(answer.text))
    if answer.draft is not None:
        text.append_text(draft_text(answer.draft))
    return text.append(printable(answer.rejected), REJECTED_STYLE)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{'es' if noun.endswith('s') else 's'}"


def _tokens(answer: Answer) -> list[str]:
    usage = answer.usage
    return [_plural(usage["completion_tokens"], "token")] if "completion_tokens" in usage else []


def summary(answer: Answer, seconds: float, *, cut: bool) -> str:
    """The cost of the answer and, on a second line, its mode and seed. cut: the answer was cut at max_tokens."""
    costs, origin = _tokens(answer), []
    if diffusion := answer.usage.get("diffusion"):
        costs += [_plural(diffusion["passes"], "pass"), f"{diffusion['tokens_per_pass']:.2f} tokens per pass"]
        origin += [str(diffusion["decoding"]), f"seed {diffusion['seed']}"]
    costs.append(f"{seconds:.2f} s")
    if cut:
        origin.append("cut at max tokens")
    return " · ".join(costs) + ("\n" + " · ".join(origin) if origin else "")


def status(answer: Answer) -> Text:
    """One line with the progress of the answer and the meaning of the colours."""
    text = Text(" · ".join(_tokens(answer)), "dim")
    draft = answer.draft
    if draft is not None and draft.tokens:
        text.append(f" · block {draft.block + 1} step {draft.step}")
        if draft.masked:
            text.append(f", {draft.masked} of {draft.length} ").append(MASK, MASK_STYLE)
        text.append(" · draft: ")
        for word, confidence in (("unsure", 0.0), ("likely", 0.5), ("sure", 1.0)):
            text.append(word, confidence_style(confidence)).append(" ")
    elif answer.rejected:
        text.append(" · verified: ").append("rejected", REJECTED_STYLE)
    return text


class Screen:
    """The terminal while an answer forms. What has settled by the time it is left stays on the screen.

    While it is forming, only as much of its end is drawn as fits: a terminal cannot redraw what has scrolled away.
    """

    def __init__(self, prompt: Prompt, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
        self._before = Text(printable(prompt.text), "dim") if prompt.raw else Text()
        self._after = Text(printable(prompt.suffix or ""), "dim")
        self._answer = Answer()
        self._live = Live(console=self.console, auto_refresh=False, transient=True, vertical_overflow="crop")

    def __enter__(self) -> Self:
        self._live.start()
        self._draw(Text("waiting for the first pass", "dim"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live.is_started:
            self._leave()

    def show(self, answer: Answer) -> None:
        """Draws the answer as it stands."""
        self._answer = answer
        self._draw(status(answer))

    def finish(self, answer: Answer, seconds: float) -> None:
        """Leaves the whole answer and a line about it on the screen."""
        self._answer = answer
        self._leave()
        self.console.print()
        cut = answer.finish_reason == "length" and not self._after  # a gap is always filled to its end
        self.console.print(Text(summary(answer, seconds, cut=cut), "dim"))

    def _leave(self) -> None:
        self._live.stop()
        if self._answer.text:
            self.console.print(self._framed(Text(printable(self._answer.text))))

    def _framed(self, text: Text) -> Text:
        """The text where it belongs: a completion follows its prompt, an infill stands before its suffix."""
        return Text().append_text(self._before).append_text(text).append_text(self._after)

    def _draw(self, line: Text) -> None:
        width, height = self.console.size
        lines = self._framed(answer_text(self._answer)).wrap(self.console, width, tab_size=4)
        room = max(height - 3, 1)  # a blank line, the status, and the line the cursor is on
        line.truncate(width, overflow="ellipsis")
        self._live.update(Group(*lines[-room:], Text(), line), refresh=True)


class Race:
    """The terminal while answers form beside each other, each under the name of its mode."""

    def __init__(self, names: Sequence[str], console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
        self._names = names
        self._answers = [Answer() for _ in names]
        self._live = Live(console=self.console, auto_refresh=False, transient=True, vertical_overflow="crop")

    def __enter__(self) -> Self:
        self._live.start()
        self.show(self._answers)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live.is_started:
            self._live.stop()
            self.console.print(self._table([Text(printable(answer.text)) for answer in self._answers], None))

    def show(self, answers: Sequence[Answer]) -> None:
        """Draws the answers as they stand: as much of the end of each as fits."""
        self._answers = list(answers)
        room = max(self.console.height - 5, 1)  # names, a blank line, the status, and the line the cursor is on
        texts = []
        for answer in answers:
            lines = answer_text(answer).wrap(self.console, self._width, tab_size=4)
            texts.append(Text("\n").join(lines[-room:]))
        self._live.update(self._table(texts, [status(answer) for answer in answers]), refresh=True)

    def finish(self, answers: Sequence[Answer], seconds: Sequence[float]) -> None:
        """Leaves the whole answers and what they cost on the screen."""
        self._live.stop()
        costs = [
            Text(summary(answer, taken, cut=answer.finish_reason == "length"), "dim")
            for answer, taken in zip(answers, seconds, strict=True)
        ]
        self.console.print(self._table([Text(printable(answer.text)) for answer in answers], costs))

    @property
    def _width(self) -> int:
        """Characters in a column; two lie between two columns."""
        count = len(self._names)
        return max((self.console.width - 2 * (count - 1)) // count, 1)

    def _table(self, texts: Sequence[Text], lines: Sequence[Text] | None) -> Table:
        table = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
        for _ in self._names:
            table.add_column(width=self._width, overflow="fold")
        table.add_row(*(Text(name, "bold") for name in self._names))
        table.add_row(*texts)
        if lines is not None:
            table.add_row(*(Text() for _ in self._names))
            table.add_row(*lines)
        return table
