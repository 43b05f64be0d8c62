"""A queue of items that wait for their grammars to be compiled, beside the passes."""

from __future__ import annotations

import logging
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Generic, TypeVar

from engine.errors import RequestError
from engine.grammar.compiler import GrammarCompiler
from engine.grammar.state import CompiledGrammar
from engine.request import Grammar

log = logging.getLogger("lightcone.engine")

COMPILER_FAILED = "The engine failed to compile this request's grammar."
POLL_SECONDS = 0.02
"""Longest wait for a first result while there is nothing else to do. Messages are not read meanwhile."""

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Compiled(Generic[Item]):
    """The end of one item's wait: its grammar, or why it has none."""

    item: Item
    grammar: CompiledGrammar | None = None
    error: str = ""
    """One line; empty if there is a grammar."""


class GrammarQueue(Generic[Item]):
    """Items by their key, in the order in which they came."""

    def __init__(self, compiler: GrammarCompiler) -> None:
        self._compiler = compiler
        self._waiting: dict[str, tuple[Item, Future[CompiledGrammar]]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, key: str) -> bool:
        return key in self._waiting

    def add(self, key: str, item: Item, grammar: Grammar) -> None:
        """Starts to compile the item's grammar. Raises KeyError if the key is in use."""
        if key in self._waiting:
            raise KeyError(f"{key!r} is in use")
        self._waiting[key] = (item, self._compiler.start(grammar))

    def remove(self, key: str) -> Item | None:
        """Drops an item and returns it; None if it is not here."""
        entry = self._waiting.pop(key, None)
        return None if entry is None else entry[0]

    def take(self, *, idle: bool) -> list[Compiled[Item]]:
        """Removes and returns the items whose wait is over.

        idle: there is nothing else to do, so wait a moment for the first one.
        """
        if idle and self._waiting:
            wait([future for _, future in self._waiting.values()], POLL_SECONDS, FIRST_COMPLETED)
        done = [key for key, (_, future) in self._waiting.items() if future.done()]
        return [self._result(key, *self._waiting.pop(key)) for key in done]

    def _result(self, key: str, item: Item, future: Future[CompiledGrammar]) -> Compiled[Item]:
        try:
            return Compiled(item, future.result())
        except RequestError as error:
            return Compiled(item, error=str(error))
        except Exception:
            log.exception("the grammar of request %s could not be compiled", key)
            return Compiled(item, error=COMPILER_FAILED)
