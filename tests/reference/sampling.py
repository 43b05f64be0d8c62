"""From one row of logits to one token, the slow and obvious way, with a record of how close the decision was."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from tests.reference.noise import gumbel

NEAR_TIE = 1e-4
"""Decisions closer than this (nats) may fall either way in single precision, and in nothing else."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is chosen. The field names are the ones of the wire."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_tokens: int = 0
    logprobs: int | None = None


GREEDY = Sampling()


@dataclass(frozen=True)
class Choice:
    """One chosen token."""

    token: int
    logprobs: np.ndarray
    """[V]: natural-log softmax of the distribution confidence is taken from."""
    margin: float
    """By how much (nats) the choice was made; 0 where a filter's boundary decided it by a hair."""

    @property
    def logprob(self) -> float:
        return float(self.logprobs[self.token])


def choose(
    logits: np.ndarray,
    sampling: Sampling,
    position: int,
    *,
    banned: Collection[int],
    prompt: Collection[int] = (),
    generated: Collection[int] = (),
) -> Choice:
    """logits: [V] raw. banned: never chosen here (mask, padding, end tokens before `min_tokens`). prompt, generated:
    the history that penalties see. position: absolute, of the token being chosen."""
    adjusted = penalise(bias(logits, sampling, banned), sampling, prompt, generated)
    logprobs = adjusted - _log_sum_exp(adjusted)
    if sampling.temperature == 0:
        return Choice(int(adjusted.argmax()), logprobs, _gap(adjusted))
    scores = adjusted / sampling.temperature
    noise = gumbel(sampling.seed, position, len(scores))
    noisy = keep(scores, sampling.top_k, sampling.top_p, sampling.min_p) + noise
    token, margin = int(noisy.argmax()), _gap(noisy)
    for nudge in (1 - NEAR_TIE, 1 + NEAR_TIE):  # would filters a hair tighter or looser choose the same?
        top_p = sampling.top_p if sampling.top_p == 1 else min(sampling.top_p * nudge, 1.0)
        nudged = keep(scores, sampling.top_k, top_p, sampling.min_p * nudge) + noise
        margin = margin if int(nudged.argmax()) == token else 0.0
    if 0 < sampling.top_k < len(scores):
        ordered = np.sort(scores)[::-1]
        inside, outside = ordered[sampling.top_k - 1], ordered[sampling.top_k]
        if outside > -math.inf and inside - outside < NEAR_TIE:
            margin = 0.0
    return Choice(token, logprobs, margin)


def ranked(
    logits: np.ndarray,
    sampling: Sampling,
    position: int,
    *,
    banned: Collection[int],
    prompt: Collection[int] = (),
    generated: Collection[int] = (),
) -> list[int]:
    """The tokens that `choose` would choose one after the other, were each refused in turn."""
    scores = penalise(bias(logits, sampling, banned), sampling, prompt, generated)
    if sampling.temperature > 0:
        scores = keep(scores / sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
        scores = scores + gumbel(sampling.seed, position, len(scores))
    return [token for token in np.argsort(-scores, kind="stable").tolist() if scores[token] > -math.inf]


def bias(logits: np.ndarray, sampling: Sampling, banned: Collection[int]) -> np.ndarray:
    """Bans and logit_bias."""
    row = logits.astype(np.float64)
    for token, value in sampling.logit_bias.items():
        row[token] += value
    row[list(banned)] = -math.inf
    return row


def penalise(row: np.ndarray, sampling: Sampling, prompt: Collection[int], generated: Collection[int]) -> np.ndarray:
    """Repetition penalty on everything seen; frequency and presence penalties on what was generated."""
    row = row.copy()
    counts = Counter(generated)
    for token in {*prompt, *counts}:
        row[token] = (
            row[token] / sampling.repetition_penalty if row[token] > 0 else row[token] * sampling.repetition_penalty
        )
    for token, count in counts.items():
        row[token] -= count * sampling.frequency_penalty + sampling.presence_penalty
    return row


def keep(scores: np.ndarray, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """top_k, then top_p of what is left, then min_p; the best token always stays, of equals the lower ids."""
    order = np.argsort(-scores, kind="stable")
    if top_k > 0:
        order = order[:top_k]
    weights = np.exp(scores[order] - scores[order[0]])
    probabilities = weights / weights.sum()
    kept: list[int] = []
    mass = 0.0
    for token, probability in zip(order.tolist(), probabilities.tolist(), strict=True):
        if kept and mass >= top_p and top_p < 1:
            break
        mass += probability
        if probability >= min_p * probabilities[0]:
            kept.append(token)
    filtered = np.full_like(scores, -math.inf)
    filtered[kept] = scores[kept]
    return filtered


def _log_sum_exp(row: np.ndarray) -> float:
    top = float(row.max())
    return top + math.log(float(np.exp(row - top).sum()))


def _gap(row: np.ndarray) -> float:
    """Distance between the best and the second best."""
    second, best = np.partition(row, -2)[-2:]
    return float(best - second)
