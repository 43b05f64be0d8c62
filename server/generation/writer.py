"""The interface by which an endpoint writes the answer of a generation, and the form of a server-sent event."""

from __future__ import annotations

from abc import ABC, abstractmethod

from server.generation.choice import Delta, ScoredToken
from server.generation.run import Generation
from server.http.json_codec import encode_json

DONE = b"data: [DONE]\n\n"
"""OpenAI's end of a stream."""
KEEPALIVE = b": keep-alive\n\n"
"""A comment, which readers of server-sent events ignore."""


def sse_event(payload: object, name: str = "") -> bytes:
    """One server-sent event with a JSON payload. name: its type, for formats that have any."""
    return (b"event: " + name.encode() + b"\n" if name else b"") + b"data: " + encode_json(payload) + b"\n\n"


class AnswerWriter(ABC):
    """Writes the answer of one generation in the format of one endpoint. It may hold state: use it once."""

    @abstractmethod
    def whole(self, generation: Generation, tokens: list[list[ScoredToken]]) -> object:
        """The JSON object of an answer that is not streamed. tokens: the scored tokens of each choice."""

    @abstractmethod
    def chunk(self, generation: Generation, delta: Delta) -> bytes:
        """The events that tell one delta."""

    @abstractmethod
    def ending(self, generation: Generation) -> bytes:
        """The events that end a stream, once every choice has been told to its end."""
