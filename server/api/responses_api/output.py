"""The output of a response while it forms: parts of the answer go in, items and the events about them come out."""

from __future__ import annotations

import itertools
import secrets
from abc import ABC, abstractmethod
from typing import Any

from server.api.chat.response import ScoredTokenLogprob
from server.api.responses_api.objects import (
    ArgumentsDelta,
    ArgumentsDone,
    Event,
    FunctionCallItem,
    ItemAdded,
    ItemDone,
    ItemStatus,
    OutputItem,
    OutputMessage,
    OutputText,
    PartAdded,
    PartDone,
    ReasoningDelta,
    ReasoningDone,
    ReasoningItem,
    ReasoningText,
    TextDelta,
    TextDone,
)
from server.formats.parts import AnswerText, Part, Thought, ToolCallStart


class OpenItem(ABC):
    """An item whose text still grows."""

    prefix: str

    def __init__(self) -> None:
        self.id = self.prefix + secrets.token_hex(12)
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """Its text so far."""
        return "".join(self._pieces)

    def append(self, text: str) -> None:
        """Adds text."""
        self._pieces.append(text)

    @abstractmethod
    def as_item(self, status: ItemStatus) -> OutputItem:
        """The item as it stands; empty while it is in progress."""

    @abstractmethod
    def opening(self, place: dict[str, Any]) -> list[Event]:
        """The events before the first text. place: the fields that tell which item an event is about."""

    @abstractmethod
    def growth(self, place: dict[str, Any], text: str) -> Event:
        """The event of new text."""

    @abstractmethod
    def closing(self, place: dict[str, Any]) -> list[Event]:
        """The events after the last text."""


class OpenMessage(OpenItem):
    """A message of the assistant."""

    prefix = "msg_"

    def __init__(self) -> None:
        super().__init__()
        self.logprobs: list[ScoredTokenLogprob] = []
        """Of its tokens so far, where they are told."""

    def _content(self) -> OutputText:
        return OutputText(self.text, logprobs=self.logprobs)

    def as_item(self, status: ItemStatus) -> OutputMessage:
        """See OpenItem."""
        return OutputMessage(self.id, status, [] if status == "in_progress" else [self._content()])

    def opening(self, place: dict[str, Any]) -> list[Event]:
        """See OpenItem."""
        return [PartAdded(part=OutputText(""), **place)]

    def growth(self, place: dict[str, Any], text: str) -> Event:
        """See OpenItem."""
        return TextDelta(delta=text, **place)

    def closing(self, place: dict[str, Any]) -> list[Event]:
        """See OpenItem."""
        done = TextDone(text=self.text, logprobs=self.logprobs, **place)
        return [done, PartDone(part=self._content(), **place)]


class OpenReasoning(OpenItem):
    """Reasoning."""

    prefix = "rs_"

    def as_item(self, status: ItemStatus) -> ReasoningItem:
        """See OpenItem."""
        return ReasoningItem(self.id, status, [] if status == "in_progress" else [ReasoningText(self.text)])

    def opening(self, place: dict[str, Any]) -> list[Event]:
        """See OpenItem."""
        return [PartAdded(part=ReasoningText(""), **place)]

    def growth(self, place: dict[str, Any], text: str) -> Event:
        """See OpenItem."""
        return ReasoningDelta(delta=text, **place)

    def closing(self, place: dict[str, Any]) -> list[Event]:
        """See OpenItem."""
        return [ReasoningDone(text=self.text, **place), PartDone(part=ReasoningText(self.text), **place)]


class OpenCall(OpenItem):
    """A call of a function."""

    prefix = "fc_"

    def __init__(self, start: ToolCallStart) -> None:
        super().__init__()
        self._start = start

    def as_item(self, status: ItemStatus) -> FunctionCallItem:
        """See OpenItem."""
        return FunctionCallItem(self.id, status, self._start.id, self._start.name, self.text)

    def opening(self, place: dict[str, Any]) -> list[Event]:
        """See OpenItem."""
        return []

    def growth(self, place: dict[str, Any], text: str) -> Event:
        """See OpenItem."""
        return ArgumentsDelta(delta=text, **place)

    def closing(self, place: dict[str, Any]) -> list[Event]:
        """See OpenItem."""
        return [ArgumentsDone(name=self._start.name, arguments=self.text, **place)]


class Output:
    """The items of one response. At most one, the last, is open."""

    def __init__(self) -> None:
        self.items: list[OutputItem] = []
        """Those that are closed."""
        self._open: OpenItem | None = None
        self._numbers = itertools.count()

    def next_number(self) -> int:
        """The number of the next event."""
        return next(self._numbers)

    def add(self, parts: list[Part], logprobs: list[ScoredTokenLogprob] | None = None) -> list[Event]:
        """The events about more of the answer. logprobs: of the tokens of its text, where these are told."""
        events: list[Event] = []
        for part in parts:
            if isinstance(part, ToolCallStart):
                events += self._begin(OpenCall(part))
                continue
            if isinstance(part, AnswerText) and not isinstance(self._open, OpenMessage):
                events += self._begin(OpenMessage())
            elif isinstance(part, Thought) and not isinstance(self._open, OpenReasoning):
                events += self._begin(OpenReasoning())
            if self._open is not None and part.text:
                self._open.append(part.text)
                event = self._numbered(self._open.growth(self._place(), part.text))
                if logprobs and isinstance(self._open, OpenMessage) and isinstance(event, TextDelta):
                    self._open.logprobs += logprobs
                    event.logprobs, logprobs = logprobs, None
                events.append(event)
        return events

    def end(self, *, whole: bool) -> list[Event]:
        """The events that end the answer. whole: it came to its end. An answer without items is an empty message."""
        events = self._begin(OpenMessage()) if self._open is None else []
        return events + self._close("completed" if whole else "incomplete")

    # -- inside -------------------------------------------------------------------------------------------------

    def _begin(self, item: OpenItem) -> list[Event]:
        events = self._close("completed")
        self._open = item
        added = ItemAdded(sequence_number=0, output_index=len(self.items), item=item.as_item("in_progress"))
        return events + [self._numbered(event) for event in [added, *item.opening(self._place())]]

    def _close(self, status: ItemStatus) -> list[Event]:
        if self._open is None:
            return []
        item = self._open.as_item(status)
        done = ItemDone(sequence_number=0, output_index=len(self.items), item=item)
        is_half = isinstance(self._open, OpenCall) and status == "incomplete"  # its arguments are never done
        closing = [] if is_half else self._open.closing(self._place())
        events = [self._numbered(event) for event in [*closing, done]]
        self.items.append(item)
        self._open = None
        return events

    def _place(self) -> dict[str, Any]:
        return {
            "sequence_number": 0,
            "item_id": "" if self._open is None else self._open.id,
            "output_index": len(self.items),
        }

    def _numbered(self, event: Event) -> Event:
        event.sequence_number = self.next_number()
        return event
