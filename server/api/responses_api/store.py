"""Responses that clients had stored, in memory and within a bound. A restart forgets them."""

from __future__ import annotations

from dataclasses import dataclass

from server.api.chat.messages import Message
from server.http.json_codec import encode_json


@dataclass(frozen=True)
class StoredResponse:
    """A response and the conversation that it ends, instructions apart."""

    response: bytes
    """The response's JSON."""
    messages: tuple[Message, ...]

    @property
    def num_bytes(self) -> int:
        """Its size, as JSON."""
        said = [message.model_dump(exclude_none=True) for message in self.messages]
        return len(self.response) + len(encode_json(said))


class ResponseStore:
    """Keeps what was stored last, up to a number of bytes; the oldest go first.

    Whoever knows an id may read and delete what is stored under it: ids are 96 random bits.
    """

    def __init__(self, max_bytes: int) -> None:
        """max_bytes: of all that is stored; 0: nothing can be."""
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._kept: dict[str, tuple[StoredResponse, int]] = {}

    @property
    def can_keep(self) -> bool:
        """Whether anything can be stored."""
        return self._max_bytes > 0

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, response_id: str, stored: StoredResponse) -> None:
        """Stores a response, and forgets the oldest where there are too many."""
        size = stored.num_bytes
        self._kept[response_id] = stored, size
        self._num_bytes += size
        while self._num_bytes > self._max_bytes:
            self.forget(next(iter(self._kept)))

    def get(self, response_id: str) -> StoredResponse | None:
        """A stored response, or None."""
        found = self._kept.get(response_id)
        return None if found is None else found[0]

    def forget(self, response_id: str) -> bool:
        """Forgets a response. Returns whether there was one."""
        found = self._kept.pop(response_id, None)
        if found is not None:
            self._num_bytes -= found[1]
        return found is not None
