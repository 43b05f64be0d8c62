"""The interface by which an endpoint writes the answer of a generation."""

from __future__ import annotations

from abc import ABC, abstractmethod

from server.generation.choice import Delta
from server.generation.generation import Generation, WholeChoice
from server.generation.sse import KEEPALIVE, sse_event
from server.http.errors import ApiError


class AnswerWriter(ABC):
    """Writes the answer of one generation in the format of one endpoint. It may hold state: use it once."""

    keepalive: bytes = KEEPALIVE
    """What is sent in a silent stream so that proxies keep it open."""

    @abstractmethod
    def whole(self, generation: Generation, choices: list[WholeChoice]) -> object:
        """The JSON object of an answer that is not streamed."""

    @abstractmethod
    def chunk(self, generation: Generation, delta: Delta) -> bytes:
        """The events that tell one delta."""

    @abstractmethod
    def ending(self, generation: Generation) -> bytes:
        """The events that end a stream, once every choice has been told to its end."""

    def failure(self, error: ApiError, request_id: str) -> bytes:
        """The event of an error in a stream that has begun, which is its last."""
        return sse_event(error.body())
