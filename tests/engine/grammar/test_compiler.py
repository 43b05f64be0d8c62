"""Compilation of grammars. If one fails, a mistake in one schema is a riddle to its author or everybody's outage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.errors import RequestError
from engine.grammar.compiler import CACHE_SIZE, GrammarCompiler
from engine.grammar.state import GrammarVocabulary
from engine.request import Grammar
from tests.conftest import MakeEngine
from tests.engine.driving import Answer, ask, drive
from tests.reference.grammars import (
    TOKENS,
    allowed,
    choice,
    compiled,
    follower,
    masks_of,
    regex,
    schema,
    vocabulary,
)

PROMPT = [40, 41, 42]


def one(make: MakeEngine, grammar: Grammar, mode: str = "ar", **fields: Any) -> Answer:
    return drive(make(), [ask("r", PROMPT, mode, grammar=grammar, **({"max_tokens": 60} | fields))])["r"]


@pytest.mark.parametrize(
    ("grammar", "part"),
    [
        (regex("a(?=b)"), "look-around"),
        (regex("(a"), "unclosed group"),
        (Grammar(kind="lark", source="start: b"), "unknown name"),
        (Grammar(kind="lark", source='start: "a"\n}\nx: "b"'), "expecting rule"),
        (Grammar(kind="lark", source=""), "No 'root' rule"),
        (regex("a\\"), "backslash"),
        (schema({"type": "strin"}), "strin"),
        (schema({"not": {}}), "not"),
        (schema({"$ref": "https://example.com/schema.json"}), "example.com"),
        (schema({"type": "integer", "minimum": 5, "maximum": 3}), "minimum"),
        (schema(True), "object"),
        (Grammar(kind="json_schema", source="{"), "object"),
        (Grammar(kind="json_schema", source="[" * 20000), "object"),
        (schema({"allOf": [{"$ref": "#"}]}), "no text"),
        (choice(), "at least one"),
        (Grammar(kind="choice", source='["a", 1]'), "strings"),
        (choice(*map(str, range(1025))), "1024"),
        (choice("é"), "no text"),
    ],
)
def test_a_grammar_that_cannot_be_used_ends_its_request_with_one_line(
    text_engine: MakeEngine, grammar: Grammar, part: str
) -> None:
    """A mistake in a schema would be a riddle to its author, or an outage to everybody else."""
    finished = one(text_engine, grammar).finished
    assert finished.reason == "error"
    assert part in (finished.error or "")
    assert "\n" not in (finished.error or "")
    assert len(finished.error or "") < 300


def test_schemas_say_only_what_json_schema_says(text_checkpoint: Path) -> None:
    """A caller could switch the library's own options, or have white space for ever instead of an answer."""
    loose = {"type": "object", "x-guidance": {"whitespace_pattern": "[ ]+", "lenient": True}}
    state = follower(compiled(text_checkpoint, schema(loose)), [TOKENS.index("{"), TOKENS.index(" ")])
    may = allowed(masks_of([state], [[]], 1)[0, 0])
    assert may & {TOKENS.index(" "), TOKENS.index("  ")} == set()
    with pytest.raises(RequestError, match="not"):
        compiled(text_checkpoint, schema(loose | {"not": {}}))


def test_compiled_grammars_are_kept_but_not_without_end(text_checkpoint: Path) -> None:
    """Every request would pay for its schema anew, or a client with a new schema a request would fill the memory."""
    loads: list[int] = []

    def load() -> GrammarVocabulary:
        loads.append(1)
        return vocabulary(text_checkpoint)

    compiler = GrammarCompiler(load)
    first = compiler.start(choice("yes"))
    assert compiler.start(choice("yes")) is first
    for i in range(CACHE_SIZE):
        compiler.start(choice(f"{i}")).result()
    assert len(compiler._futures) == CACHE_SIZE
    assert compiler.start(choice("yes")) is not first
    assert loads == [1]


def test_a_model_without_a_tokenizer_refuses_grammars_alone(tiny_engine: MakeEngine) -> None:
    """The engine would fail as a whole, or show a path of the machine it runs on."""
    answers = drive(tiny_engine(), [ask("bad", PROMPT, grammar=choice("a")), ask("good", PROMPT)])
    assert answers["bad"].finished.error == "This model's tokenizer cannot be used with grammars."
    assert answers["good"].finished.reason == "length"


@pytest.mark.parametrize("mode", ["ar", "speculative", "diffusion"])
@pytest.mark.parametrize(
    "rules", ['start: sign DIGITS\nsign: "-" | ""\nDIGITS: /[0-9]{3}/', 'root ::= "-"? [0-9] [0-9] [0-9]']
)
def test_rules_in_lark_or_gbnf_bind_like_the_expression_that_says_the_same(
    text_engine: MakeEngine, rules: str, mode: str
) -> None:
    written = one(text_engine, Grammar(kind="lark", source=rules), mode)
    assert written.outcome == one(text_engine, regex("-?[0-9]{3}"), mode).outcome
    assert written.finished.reason == "stop"
