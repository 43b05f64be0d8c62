"""What a grammar allows, along drafts and after rejections, and what becomes of one that cannot be used.

If one fails, a token that breaks the answer is offered, or a mistake in one schema is everybody's outage.
"""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import RequestError
from engine.grammar.compiler import CACHE_SIZE, GrammarCompiler, compile_grammar
from engine.grammar.state import GrammarVocabulary, token_masks
from engine.request import MAX_REGEX_LENGTH, MAX_SCHEMA_BYTES, Grammar
from tests.conftest import MakeEngine, engine_maker
from tests.engine.driving import Answer, ask, assert_idle, drive, step
from tests.reference.checkpoints import EOS
from tests.reference.grammars import (
    GRAMMARS,
    MODEL_VOCABULARY,
    SPECIALS,
    TOKENS,
    allowed,
    choice,
    compiled,
    follower,
    regex,
    schema,
    text_of,
    vocabulary,
    write_text_checkpoint,
)

PROMPT = [40, 41, 42]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_checkpoint(tmp_path_factory.mktemp("models") / "text")


@pytest.fixture(scope="module")
def text_engine(checkpoint: Path) -> MakeEngine:
    """Engines of a tiny random model in float64 whose tokens have texts."""
    return engine_maker(checkpoint, "float64")


def one(make: MakeEngine, grammar: Grammar, decoding: str = "ar", **fields: Any) -> Answer:
    return drive(make(), [ask("r", PROMPT, decoding, grammar=grammar, **({"max_tokens": 60} | fields))])["r"]


# --- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choices", [("yes", "no", "abab", "ab"), ("{}", '{"', "item"), ("12", "1200", "")])
def test_masks_of_choices_against_brute_force(checkpoint: Path, choices: tuple[str, ...]) -> None:
    """A token that leads nowhere would be offered, or one that is right withheld."""
    grammar = compiled(checkpoint, choice(*choices))
    beginnings = {text[:end] for text in choices for end in range(len(text) + 1)}
    seen = 0
    open_paths: list[tuple[list[int], str]] = [([], "")]
    while open_paths:
        path, text = open_paths.pop()
        expected = {i for i, token in enumerate(TOKENS) if i >= len(SPECIALS) and text + token in beginnings}
        further = [([*path, i], text + TOKENS[i]) for i in expected]
        expected |= {EOS} if text in choices else set()
        assert allowed(token_masks([follower(grammar, path)], [[]], 1)[0, 0]) == expected, text
        open_paths += further
        seen += 1
    assert seen > 2


@pytest.mark.parametrize("name", GRAMMARS)
def test_control_tokens_and_ids_without_text_are_never_allowed(checkpoint: Path, name: str) -> None:
    """The mask token, a turn marker or an id that the tokenizer does not know would appear in an answer."""
    grammar, rng = compiled(checkpoint, GRAMMARS[name][0]), random.Random(1)
    path: list[int] = []
    for _ in range(40):
        may = allowed(token_masks([follower(grammar, path)], [[]], 1)[0, 0])
        assert may <= {EOS, *range(len(SPECIALS), len(TOKENS))}, "beyond the tokenizer's texts"
        text = sorted(may - {EOS})
        if not text:
            break
        path.append(rng.choice(text))
    assert len(TOKENS) < MODEL_VOCABULARY, "the model has no ids without text"


@pytest.mark.parametrize("name", GRAMMARS)
def test_masks_along_drafts_are_those_of_the_tokens_before_alone(checkpoint: Path, name: str) -> None:
    """A draft that was walked over and rolled back would leave its trace: speculation would change the text."""
    grammar, rng = compiled(checkpoint, GRAMMARS[name][0]), random.Random(name)
    seqs = [follower(grammar, []) for _ in range(5)]
    for _ in range(12):
        # Drafts of which some tokens are right and some wrong, then a few of the right ones settle.
        drafts = [_walk(grammar, seq.token_ids[2:], rng) for seq in seqs]
        wrong = [[*d[: (at := rng.randrange(7))], rng.randrange(MODEL_VOCABULARY), *d[at + 1 :]] for d in drafts]
        masks = token_masks(seqs, wrong, 8)
        for seq, walk, mask in zip(seqs, wrong, masks, strict=True):
            for i in range(8):
                fresh = follower(grammar, seq.token_ids[2:] + walk[:i])
                expected = allowed(token_masks([fresh], [[]], 1)[0, 0])
                assert allowed(mask[i]) & set(range(len(TOKENS))) == expected, f"after {text_of(walk[:i])!r}"
                if i < 7 and (walk[i] not in expected or walk[i] == EOS):
                    break
        for seq, draft in zip(seqs, drafts, strict=True):
            seq.token_ids += [token for token in draft[: rng.randrange(3)] if token != EOS]


def _walk(grammar: Any, path: list[int], rng: random.Random) -> list[int]:
    """Seven tokens that the grammar allows one after the other; end tokens once it is complete."""
    walk: list[int] = []
    while len(walk) < 7:
        may = allowed(token_masks([follower(grammar, path + walk)], [[]], 1)[0, 0])
        walk.append(rng.choice(sorted(may - {EOS}) or [EOS]))
        if walk[-1] == EOS:
            walk += [EOS] * (7 - len(walk))
    return walk


def test_end_tokens_are_allowed_exactly_where_the_text_may_end(checkpoint: Path) -> None:
    """Half an object would count as an answer, or a request's own stop token would never end it."""
    grammar = compiled(checkpoint, regex("ab(ab)*"))
    a, ab, stop = TOKENS.index("a"), TOKENS.index("ab"), TOKENS.index("aba")
    for fields, ends in (({}, {EOS}), ({"stop_token_ids": (4, stop)}, {EOS, 4, stop}), ({"ignore_eos": True}, set())):
        complete, half = follower(grammar, [ab], **fields), follower(grammar, [ab, a], **fields)
        masks = token_masks([complete, half], [[], []], 1)[:, 0]
        assert allowed(masks[0]) & {EOS, 4, stop} == (ends or set()) | ({stop} - ends), fields
        assert not allowed(masks[1]) & {EOS, 4}, fields


def test_drafts_are_made_to_fit(checkpoint: Path) -> None:
    """Speculation under a grammar would draft what is refused anyway, and be slower than plain decoding."""
    grammar = compiled(checkpoint, regex(r"[ab]{3}: yes\."))
    ids = {text: i for i, text in enumerate(TOKENS)}
    seq = follower(grammar, [ids["a"]])
    drafts = [ids[text] for text in ("b", "c", "x", "x", "x", ".")] + [EOS]
    candidates = [[ids["z"]] * 2, [ids["y"], ids["a"]], [ids[":"]], [ids["z"]], [ids["z"]], [ids["z"]], [ids["z"]]]
    before = token_masks([seq], [[]], 1)
    fitted = seq.grammar.fit(seq, drafts, candidates) if seq.grammar else []
    assert text_of(fitted[:-1]) == "ba: yes."
    assert fitted[-1] == EOS
    assert np.array_equal(token_masks([seq], [[]], 1), before), "fitting a draft moved the sequence"


# --- the door and the compiler ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grammar", "fields", "param", "part"),
    [
        (regex("a"), {"decoding": "diffusion"}, "decoding", "ar, speculative, auto"),
        (regex("a"), {"decoding": "auto", "suffix_token_ids": [40]}, "suffix", "grammar"),
        (regex(""), {}, "grammar", "1 to"),
        (regex("a" * (MAX_REGEX_LENGTH + 1)), {}, "grammar", str(MAX_REGEX_LENGTH)),
        (schema({"title": "é" * (MAX_SCHEMA_BYTES // 2)}), {}, "grammar", str(MAX_SCHEMA_BYTES)),
    ],
)
def test_what_can_never_be_followed_is_refused_at_the_door(
    text_engine: MakeEngine, grammar: Grammar, fields: dict[str, Any], param: str, part: str
) -> None:
    """Diffusion would ignore the schema without a word, or a huge one would be copied about before it is refused."""
    with pytest.raises(RequestError, match=part) as refused:
        text_engine().add(ask("r", PROMPT, grammar=grammar, **fields))
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("grammar", "part"),
    [
        (regex("a(?=b)"), "look-around"),
        (regex("(a"), "unclosed group"),
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


def test_schemas_say_only_what_json_schema_says(checkpoint: Path) -> None:
    """A caller could switch the library's own options, or have white space for ever instead of an answer."""
    loose = {"type": "object", "x-guidance": {"whitespace_pattern": "[ ]+", "lenient": True}}
    state = follower(compiled(checkpoint, schema(loose)), [TOKENS.index("{"), TOKENS.index(" ")])
    may = allowed(token_masks([state], [[]], 1)[0, 0])
    assert may & {TOKENS.index(" "), TOKENS.index("  ")} == set()
    with pytest.raises(RequestError, match="not"):
        compiled(checkpoint, schema(loose | {"not": {}}))


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


def test_compiled_grammars_are_kept_but_not_without_end(checkpoint: Path) -> None:
    """Every request would pay for its schema anew, or a client with a new schema a request would fill the memory."""
    loads: list[int] = []

    def load() -> GrammarVocabulary:
        loads.append(1)
        return vocabulary(checkpoint)

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
