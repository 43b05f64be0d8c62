"""Sequences whose grammars are being compiled: they wait here, beside the passes, before the scheduler sees them."""

from __future__ import annotations

import logging
from concurrent.futures import FIRST_COMPLETED, Future, wait

from engine.errors import RequestError
from engine.events import GenerationEvent
from engine.grammar.compiler import GrammarCompiler
from engine.grammar.state import CompiledGrammar, GrammarState
from engine.request import Grammar
from engine.scheduling.outcome import finish_event
from engine.sequence import Sequence

log = logging.getLogger("lightcone.engine")

COMPILER_FAILED = "The engine failed to compile this request's grammar."
POLL_SECONDS = 0.02
"""While nothing else can be done, a look for compiled grammars waits so long, so that messages are heard meanwhile."""


class GrammarQueue:
    """By request id, in the order in which they came."""

    def __init__(self, compiler: GrammarCompiler) -> None:
        self._compiler = compiler
        self._waiting: dict[str, tuple[Sequence, Future[CompiledGrammar]]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, seq: Sequence, grammar: Grammar) -> None:
        """Has the sequence's grammar compiled. Raises RequestError if its request id is in use here."""
        self.check_id(seq.request.request_id)
        self._waiting[seq.request.request_id] = (seq, self._compiler.start(grammar))

    def check_id(self, request_id: str) -> None:
        """Raises RequestError if a sequence of this id waits here."""
        if request_id in self._waiting:
            raise RequestError(f"request id {request_id!r} is in use", "request_id")

    def abort(self, request_id: str) -> list[GenerationEvent]:
        """Drops a sequence. Returns its Finished event, if it was here."""
        entry = self._waiting.pop(request_id, None)
        return [] if entry is None else [finish_event(entry[0], "abort")]

    def take(self, *, idle: bool) -> tuple[list[Sequence], list[GenerationEvent]]:
        """Sequences that can follow their grammars now, and the ends of those that never can.

        idle: there is nothing better to do than to wait a moment for the first one.
        """
        if idle and self._waiting:
            wait([future for _, future in self._waiting.values()], POLL_SECONDS, FIRST_COMPLETED)
        ready: list[Sequence] = []
        events: list[GenerationEvent] = []
        for request_id, (seq, future) in list(self._waiting.items()):
            if not future.done():
                continue
            del self._waiting[request_id]
            try:
                seq.grammar = GrammarState(future.result())
                ready.append(seq)
            except RequestError as error:
                events.append(finish_event(seq, "error", error=str(error)))
            except Exception:
                log.exception("the grammar of request %s could not be compiled", request_id)
                events.append(finish_event(seq, "error", error=COMPILER_FAILED))
        return ready, events
