"""From documents to training windows: clean tokens on one side, noised blocks of the answers on the other.

A row of the model's input is [clean | noised]. The clean half holds whole documents; each sees itself causally. The
noised half holds blocks of the answers, each at its own place in its document: a block sees itself both ways and the
clean tokens of its document before it. That is what a denoising pass sees at serving time (arXiv 2607.05722 trains on
the same mask with blocks on a fixed grid; blocks that start where answers do waste no position on the question).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer

from tools.builtin_model.calling.chats import tool_chat
from tools.builtin_model.documents import Document
from tools.builtin_model.first_questions import mixed_document

BOS, EOS, MASK, PAD = 1, 2, 5, 0
BLOCK_LENGTHS, BLOCK_SHARES = (4, 8, 16, 32, 64), (0.08, 0.15, 0.26, 0.43, 0.08)
"""The longest is for gaps with a suffix: an answer's blocks are of at most 32."""
LONGEST_GAP = 33
"""One more than the most tokens of a gap that has a suffix in the same block."""
PROMPT_WEIGHT = 0.2
"""Weight of a prompt's tokens in the causal loss: most of the capacity is for answers."""
AFTER_END_WEIGHT = 0.05
"""Weight of a block's positions after the end token, which one pass fills with end tokens."""


@dataclass
class Window:
    """Whole documents, one after another. Arrays are [length]; `answers` are [start, end), the end token included."""

    token_ids: np.ndarray
    document: np.ndarray
    weights: np.ndarray
    """Weight of the prediction of each token from those before it."""
    answers: list[tuple[int, int]]


@dataclass
class Batch:
    """Rows of [clean | noised], all tensors [rows, 2 * length] unless said otherwise."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    visible: torch.Tensor
    """bool [rows, 1, 2 * length, 2 * length]: whether the query (third) sees the key (fourth)."""
    targets: torch.Tensor
    """The next token at a clean position, the original token at a noised one."""
    weights: torch.Tensor


class Shares(NamedTuple):
    """What documents are about, beside the kinds of `documents`."""

    tool_chats: float = 0.0
    """Share of documents that are chats with tools."""
    first_questions: float = 0.0
    """Share of the others that are about the questions that newcomers type first."""
    difficult: float = 0.0
    """Share of those of them that are learnt last."""

    def document(self, rng: random.Random) -> Document:
        """One document. A share of 0 takes no random number."""
        if self.tool_chats and rng.random() < self.tool_chats:
            return tool_chat(rng)
        return mixed_document(rng, self.first_questions, self.difficult)


PLAIN = Shares()
"""The kinds of `documents` alone."""


def make_window(rng: random.Random, tokenizer: Tokenizer, length: int, shares: Shares = PLAIN) -> Window:
    """Documents until the window is full; one that does not fit is left out."""
    ids: list[int] = []
    owner: list[int] = []
    weights: list[float] = []
    answers: list[tuple[int, int]] = []
    misses = number = 0
    while not answers or (misses < 4 and length - len(ids) > 24):
        parts = shares.document(rng)
        texts = tokenizer.encode_batch([part.text for part in parts], add_special_tokens=False)
        lengths = [len(text.ids) for text in texts]
        if 1 + sum(lengths) > length - len(ids):
            misses += 1
            continue
        ids.append(BOS)
        weights.append(0.0)
        for part, text in zip(parts, texts, strict=True):
            if part.answer:
                answers.append((len(ids), len(ids) + len(text.ids)))
            ids += text.ids
            weights += [1.0 if part.answer else PROMPT_WEIGHT] * len(text.ids)
        owner += [number] * (1 + sum(lengths))
        number += 1
    rest = length - len(ids)
    return Window(
        np.array(ids + [PAD] * rest), np.array(owner + [-1] * rest), np.array(weights + [0.0] * rest), answers
    )


def _visible_pattern(rng: np.random.Generator, block_length: int) -> np.ndarray:
    """bool [block_length]: the places of a noised block that keep their token."""
    kind = rng.random()
    places = np.arange(block_length)
    if kind < 0.42:  # somewhere in the middle of refinement
        shown = rng.random(block_length) >= rng.random()
        shown[0] |= rng.random() < 0.7
    elif kind < 0.8:  # a fresh canvas or draft: a seed, or what has been accepted so far, then masks
        prefix = 0 if rng.random() < 0.15 else 1 if rng.random() < 0.6 else int(rng.integers(1, block_length))
        shown = places < prefix
    else:  # a gap before a given suffix
        shown = places >= rng.integers(1, min(block_length, LONGEST_GAP))
    if shown.all():
        shown[rng.integers(block_length)] = False
    return shown


def noised_half(window: Window, rng: np.random.Generator, block_length: int) -> tuple[np.ndarray, ...]:
    """Blocks of one window: ids, positions, block number, document, first place, targets, weights; each [length]."""
    length = len(window.token_ids)
    starts = np.array([start for start, _ in window.answers])
    ends = np.array([end for _, end in window.answers])
    number = length // block_length
    blocks_each = -(-(ends - starts) // block_length)
    chosen = rng.choice(len(starts), size=number, p=blocks_each / blocks_each.sum())
    first = starts[chosen] + np.floor(rng.random(number) * blocks_each[chosen]).astype(np.int64) * block_length
    anywhere = starts[chosen] + np.floor(rng.random(number) * (ends - starts)[chosen]).astype(np.int64)
    first = np.where(rng.random(number) < 0.35, anywhere, first)
    positions = first[:, None] + np.arange(block_length)
    inside = positions < ends[chosen][:, None]
    true = np.where(inside, window.token_ids[np.minimum(positions, length - 1)], EOS)
    shown = np.stack([_visible_pattern(rng, block_length) for _ in range(number)])
    weights = np.where(shown, 0.0, np.where(inside, 1.0, AFTER_END_WEIGHT))
    repeat = np.repeat
    return (
        np.where(shown, true, MASK).ravel(), positions.ravel(), repeat(np.arange(number), block_length),
        repeat(window.document[starts[chosen]], block_length), repeat(first, block_length),
        true.ravel(), weights.ravel(),
    )  # fmt: skip


def make_batch(
    seed: int, step: int, tokenizer: Tokenizer, rows: int, length: int, joint: bool, shares: Shares = PLAIN
) -> Batch:
    """The batch of `step`: a pure function of its arguments, so that training can go on anywhere.

    Without `joint` there is no noised half and tensors are [rows, length].
    """
    source = random.Random(seed * 1_000_003 + step)
    rng = np.random.default_rng((seed, step))
    windows = [make_window(source, tokenizer, length, shares) for _ in range(rows)]
    ids = np.stack([window.token_ids for window in windows])
    owner = np.stack([window.document for window in windows])
    places = np.broadcast_to(np.arange(length), ids.shape)
    following = np.concatenate([ids[:, 1:], np.full((rows, 1), PAD)], axis=1)
    weights = np.concatenate([np.stack([w.weights for w in windows])[:, 1:], np.zeros((rows, 1))], axis=1)
    weights = weights * (owner == np.concatenate([owner[:, 1:], owner[:, -1:]], axis=1))
    causal = (places[:, :, None] >= places[:, None, :]) & (owner[:, :, None] == owner[:, None, :])
    if not joint:
        return _tensors(ids, places, causal, following, weights)
    block_length = int(rng.choice(BLOCK_LENGTHS, p=BLOCK_SHARES))
    noised = [np.stack(column) for column in zip(*(noised_half(w, rng, block_length) for w in windows), strict=True)]
    noised_ids, noised_places, block, noised_owner, first, own, noised_weights = noised
    visible = np.zeros((rows, 2 * length, 2 * length), dtype=bool)
    visible[:, :length, :length] = causal
    visible[:, length:, length:] = block[:, :, None] == block[:, None, :]
    visible[:, length:, :length] = (noised_owner[:, :, None] == owner[:, None, :]) & (
        places[:, None, :] < first[:, :, None]
    )
    join = np.concatenate
    return _tensors(
        join([ids, noised_ids], 1), join([places, noised_places], 1), visible, join([following, own], 1),
        join([weights, noised_weights], 1),
    )  # fmt: skip


def _tensors(
    ids: np.ndarray, positions: np.ndarray, visible: np.ndarray, targets: np.ndarray, weights: np.ndarray
) -> Batch:
    return Batch(
        torch.from_numpy(np.ascontiguousarray(ids)).long(),
        torch.from_numpy(np.ascontiguousarray(positions)).long(),
        torch.from_numpy(visible)[:, None],
        torch.from_numpy(np.ascontiguousarray(targets)).long(),
        torch.from_numpy(weights).float(),
    )
