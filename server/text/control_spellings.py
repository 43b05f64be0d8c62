"""Keeps what clients write from becoming a control token."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Any


class ControlSpellings:
    """Finds where text spells a control token, or holds the beginning or the end of one at its edges."""

    def __init__(self, spellings: Iterable[str]) -> None:
        self._spellings = list(spellings)
        self._any = re.compile("|".join(map(re.escape, self._spellings))) if self._spellings else None
        self._heads = {text[:length] for text in self._spellings for length in range(1, len(text))}
        self._tails = {text[length:] for text in self._spellings for length in range(1, len(text))}
        self._longest = max(map(len, self._spellings), default=0)

    def mark_message(self, message: dict[str, Any], marker: str) -> dict[str, Any]:
        """The message of a chat with every string in it marked that its client chose freely, at every depth.

        Names of fields, roles and types are not marked: they are words of the API, which templates compare with.
        """
        return {key: value if key == "role" else self._mark_field(key, value, marker) for key, value in message.items()}

    def mark(self, text: str, marker: str) -> str:
        """The text with the marker inside every spelling, and at an edge that others could complete to one."""
        cuts: set[int] = set()
        if self._any is not None and self._any.search(text):
            for spelling in self._spellings:
                found = text.find(spelling)
                while found >= 0:
                    cuts.add(found + 1)
                    found = text.find(spelling, found + 1)
        for length in range(1, min(self._longest, len(text) + 1)):
            if text[-length:] in self._heads:
                cuts.add(len(text))
            if text[:length] in self._tails:
                cuts.add(0)
        if not cuts:
            return text
        edges = [0, *sorted(cuts), len(text)]
        return marker.join(text[start:end] for start, end in pairwise(edges))

    def mark_value(self, value: Any, marker: str) -> Any:
        """JSON of the client's own, in which the keys are the client's, too."""
        if isinstance(value, str):
            return self.mark(value, marker)
        if isinstance(value, list):
            return [self.mark_value(item, marker) for item in value]
        if isinstance(value, dict):
            return {self.mark(key, marker): self.mark_value(item, marker) for key, item in value.items()}
        return value

    def _mark_field(self, name: str, value: Any, marker: str) -> Any:
        if name == "type":
            return value
        if name == "arguments":
            return self.mark_value(value, marker)
        if isinstance(value, str):
            return self.mark(value, marker)
        if isinstance(value, list):
            return [self._mark_field("", item, marker) for item in value]
        if isinstance(value, dict):
            return {key: self._mark_field(key, item, marker) for key, item in value.items()}
        return value
