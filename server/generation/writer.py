"""The interface by which an endpoint writes the answer of a generation."""

from __future__ import annotations

from abc import ABC, abstractmethod

from server.generation.choice import Delta
from server.generation.generation import Generation, WholeChoice


class AnswerWriter(ABC):
    """Writes the answer of one generation in the format of one endpoint. It may hold state: use it once."""

    @abstractmethod
    def whole(self, generation: Generation, choices: list[WholeChoice]) -> object:
        """The JSON object of an answer that is not streamed."""

    @abstractmethod
    def chunk(self, generation: Generation, delta: Delta) -> bytes:
        """The events that tell one delta."""

    @abstractmethod
    def ending(self, generation: Generation) -> bytes:
        """The events that end a stream, once every choice has been told to its end."""
