"""Tokens that a grammar allows, along drafts and after rejections. If one fails, a token that breaks the answer is
offered, or a right one is withheld."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.grammar.structure import Chain, Choice, Exact, Inner, structure_grammar
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
    masks_of,
    regex,
    schema,
    text_of,
)


@pytest.mark.parametrize("choices", [("yes", "no", "abab", "ab"), ("{}", '{"', "item"), ("12", "1200", "")])
def test_masks_of_choices_against_brute_force(text_checkpoint: Path, choices: tuple[str, ...]) -> None:
    """A token that leads nowhere would be offered, or one that is right withheld."""
    grammar = compiled(text_checkpoint, choice(*choices))
    beginnings = {text[:end] for text in choices for end in range(len(text) + 1)}
    seen = 0
    open_paths: list[tuple[list[int], str]] = [([], "")]
    while open_paths:
        path, text = open_paths.pop()
        expected = {i for i, token in enumerate(TOKENS) if i >= len(SPECIALS) and text + token in beginnings}
        further = [([*path, i], text + TOKENS[i]) for i in expected]
        expected |= {EOS} if text in choices else set()
        assert allowed(masks_of([follower(grammar, path)], [[]], 1)[0, 0]) == expected, text
        open_paths += further
        seen += 1
    assert seen > 2


@pytest.mark.parametrize("name", GRAMMARS)
def test_control_tokens_and_ids_without_text_are_never_allowed(text_checkpoint: Path, name: str) -> None:
    """The mask token, a turn marker or an id that the tokenizer does not know would appear in an answer."""
    grammar, rng = compiled(text_checkpoint, GRAMMARS[name][0]), random.Random(1)
    path: list[int] = []
    for _ in range(40):
        may = allowed(masks_of([follower(grammar, path)], [[]], 1)[0, 0])
        assert may <= {EOS, *range(len(SPECIALS), len(TOKENS))}, "beyond the tokenizer's texts"
        text = sorted(may - {EOS})
        if not text:
            break
        path.append(rng.choice(text))
    assert len(TOKENS) < MODEL_VOCABULARY, "the model has no ids without text"


@pytest.mark.parametrize("name", GRAMMARS)
def test_masks_along_drafts_are_those_of_the_tokens_before_alone(text_checkpoint: Path, name: str) -> None:
    """A draft that was consumed and rolled back would leave its trace: speculation would change the text."""
    grammar, rng = compiled(text_checkpoint, GRAMMARS[name][0]), random.Random(name)
    seqs = [follower(grammar, []) for _ in range(5)]
    for _ in range(12):
        # Drafts of which some tokens are right and some wrong, then a few of the right ones settle.
        drafts = [_walk(grammar, seq.token_ids[2:], rng) for seq in seqs]
        wrong = [[*d[: (at := rng.randrange(7))], rng.randrange(MODEL_VOCABULARY), *d[at + 1 :]] for d in drafts]
        masks = masks_of(seqs, wrong, 8)
        for seq, walk, mask in zip(seqs, wrong, masks, strict=True):
            for i in range(8):
                fresh = follower(grammar, seq.token_ids[2:] + walk[:i])
                expected = allowed(masks_of([fresh], [[]], 1)[0, 0])
                assert allowed(mask[i]) & set(range(len(TOKENS))) == expected, f"after {text_of(walk[:i])!r}"
                if i < 7 and (walk[i] not in expected or walk[i] == EOS):
                    break
        for seq, draft in zip(seqs, drafts, strict=True):
            seq.token_ids += [token for token in draft[: rng.randrange(3)] if token != EOS]


def _walk(grammar: Any, path: list[int], rng: random.Random) -> list[int]:
    """Seven tokens that the grammar allows one after the other; end tokens once it is complete."""
    walk: list[int] = []
    while len(walk) < 7:
        may = allowed(masks_of([follower(grammar, path + walk)], [[]], 1)[0, 0])
        walk.append(rng.choice(sorted(may - {EOS}) or [EOS]))
        if walk[-1] == EOS:
            walk += [EOS] * (7 - len(walk))
    return walk


@pytest.mark.parametrize("probe", ["mask", "fit", "extend"])
def test_a_draft_that_was_not_followed_leaves_no_trace(text_checkpoint: Path, probe: str) -> None:
    """Two tools whose names differ in their last letter: a draft that names one, where the model then calls the other,
    would let the call begin as one of the first does, which nothing can continue."""
    bodies = [{"type": "object", "properties": names, "additionalProperties": False} for names in ({"a": {}}, {})]
    calls = [Chain((Exact(f"ab{name}"), Inner(schema(body)))) for name, body in zip("12", bodies, strict=True)]
    grammar = compiled(text_checkpoint, structure_grammar(Choice(tuple(calls))))
    a, b, first, second, brace = map(TOKENS.index, ("a", "b", "1", "2", '{"'))
    seq, fresh = follower(grammar, [a, b]), follower(grammar, [a, b, second])
    if probe == "mask":
        assert brace in allowed(masks_of([seq], [[first]], 2)[0, 1])
    elif probe == "fit":
        assert seq.state.fit(seq.token_ids, [first, brace], [[], []]) == [first, brace]
    else:
        assert seq.state.extend(seq.token_ids, [first, None], lambda at, mask: None) == [first]
    seq.token_ids.append(second)
    expected = allowed(masks_of([fresh], [[]], 1)[0, 0])
    assert brace not in expected
    assert allowed(masks_of([seq], [[]], 1)[0, 0]) == expected


def test_end_tokens_are_allowed_exactly_where_the_text_may_end(text_checkpoint: Path) -> None:
    """Half an object would count as an answer, or a request's own stop token would never end it."""
    grammar = compiled(text_checkpoint, regex("ab(ab)*"))
    a, ab, stop = TOKENS.index("a"), TOKENS.index("ab"), TOKENS.index("aba")
    for fields, ends in (({}, {EOS}), ({"stop_token_ids": (4, stop)}, {EOS, 4, stop}), ({"ignore_eos": True}, set())):
        complete, half = follower(grammar, [ab], **fields), follower(grammar, [ab, a], **fields)
        masks = masks_of([complete, half], [[], []], 1)[:, 0]
        assert allowed(masks[0]) & {EOS, 4, stop} == (ends or set()) | ({stop} - ends), fields
        assert not allowed(masks[1]) & {EOS, 4}, fields


def test_drafts_are_made_to_fit(text_checkpoint: Path) -> None:
    """Speculation under a grammar would draft what is refused anyway, and be slower than plain decoding."""
    grammar = compiled(text_checkpoint, regex(r"[ab]{3}: yes\."))
    ids = {text: i for i, text in enumerate(TOKENS)}
    seq = follower(grammar, [ids["a"]])
    drafts = [ids[text] for text in ("b", "c", "x", "x", "x", ".")] + [EOS]
    candidates = [[ids["z"]] * 2, [ids["y"], ids["a"]], [ids[":"]], [ids["z"]], [ids["z"]], [ids["z"]], [ids["z"]]]
    before = masks_of([seq], [[]], 1)
    fitted = seq.state.fit(seq.token_ids, drafts, candidates)
    assert text_of(fitted[:-1]) == "ba: yes."
    assert fitted[-1] == EOS
    assert np.array_equal(masks_of([seq], [[]], 1), before), "fitting a draft moved the sequence"
