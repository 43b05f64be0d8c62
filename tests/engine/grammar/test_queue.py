"""The queue of grammars to compile. If one fails, a schema holds up everybody's passes, or a request is lost in it."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

import pytest

from engine.errors import RequestError
from engine.grammar.compiler import GrammarCompiler, compile_grammar
from engine.grammar.queue import COMPILER_FAILED, GrammarQueue
from engine.grammar.state import CompiledGrammar
from engine.request import Grammar
from tests.conftest import MakeEngine
from tests.engine.driving import Answer, ask, assert_idle, step
from tests.reference.grammars import choice, text_of

PROMPT = [40, 41, 42]
COMPILED: Any = object()
"""Stands for a compiled grammar: the queue looks at none."""


class FakeCompiler(GrammarCompiler):
    """Compiles when it is told to."""

    def __init__(self) -> None:
        self.futures: dict[Grammar, Future[CompiledGrammar]] = {}

    def start(self, grammar: Grammar) -> Future[CompiledGrammar]:
        return self.futures.setdefault(grammar, Future())


@pytest.fixture
def compiler() -> FakeCompiler:
    return FakeCompiler()


@pytest.fixture
def queue(compiler: FakeCompiler) -> GrammarQueue[str]:
    """Three items, each with a grammar of its own."""
    queue: GrammarQueue[str] = GrammarQueue(compiler)
    for key in "abc":
        queue.add(key, f"item {key}", choice(key))
    return queue


def test_items_leave_once_they_are_compiled(queue: GrammarQueue[str], compiler: FakeCompiler) -> None:
    """A request would wait for ever, or for somebody else's grammar."""
    assert queue.take(idle=True) == []
    compiler.futures[choice("b")].set_result(COMPILED)
    assert [(done.item, done.grammar, done.error) for done in queue.take(idle=True)] == [("item b", COMPILED, "")]
    assert (len(queue), "a" in queue, "b" in queue) == (2, True, False)


def test_a_failure_is_told_to_its_item_alone(
    queue: GrammarQueue[str], compiler: FakeCompiler, caplog: pytest.LogCaptureFixture
) -> None:
    """A defect would end the engine, or a client read the text of an exception."""
    compiler.futures[choice("a")].set_exception(RequestError("No text can match it.", "grammar"))
    compiler.futures[choice("c")].set_exception(ZeroDivisionError("secret detail"))
    caplog.set_level("CRITICAL", "lightcone.engine")
    done = queue.take(idle=False)
    assert [(each.item, each.grammar, each.error) for each in done] == [
        ("item a", None, "No text can match it."), ("item c", None, COMPILER_FAILED),
    ]  # fmt: skip
    assert len(queue) == 1


def test_a_removed_item_never_comes_back(queue: GrammarQueue[str], compiler: FakeCompiler) -> None:
    """An aborted request would be run."""
    assert queue.remove("a") == "item a"
    assert queue.remove("a") is None
    compiler.futures[choice("a")].set_result(COMPILED)
    assert queue.take(idle=False) == []


def test_a_key_in_use_is_refused(queue: GrammarQueue[str]) -> None:
    with pytest.raises(KeyError, match="in use"):
        queue.add("a", "another", choice("a"))


def test_an_id_in_use_is_refused_before_a_grammar_is_compiled(text_engine: MakeEngine) -> None:
    """Refused only once the grammar was ready, the error would end the stream of the request that has the id."""
    engine = text_engine()
    engine.add(ask("r", PROMPT, max_tokens=6))
    with pytest.raises(RequestError, match="in use"):
        engine.add(ask("r", PROMPT, grammar=choice("yes")))
    answers: dict[str, Answer] = {}
    while engine.has_work:
        step(engine, answers)
    assert answers["r"].finished.reason != "error"


def test_passes_go_on_while_a_grammar_is_compiled(text_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """One large schema would stop everybody's stream for as long as it takes to compile."""
    release = threading.Event()

    def slow(compiler: GrammarCompiler, grammar: Grammar) -> Any:
        release.wait(30)
        return compile_grammar(compiler._load(), grammar)

    monkeypatch.setattr(GrammarCompiler, "_compile", slow)
    engine = text_engine()
    answers: dict[str, Answer] = {}
    for name in ("waits", "leaves"):
        engine.add(ask(name, PROMPT, grammar=choice("yes")))
    engine.add(ask("plain", PROMPT))
    while "plain" not in answers or answers["plain"].events[-1].__class__.__name__ != "Finished":
        step(engine, answers)
    with pytest.raises(RequestError, match="in use"):
        engine.add(ask("waits", PROMPT))
    assert [event.__class__.__name__ for event in engine.abort("leaves")] == ["Finished"]
    assert engine.has_work
    release.set()
    while engine.has_work:
        step(engine, answers)
    assert text_of(answers["waits"].tokens) == "yes"
    assert "leaves" not in answers
    assert_idle(engine)
