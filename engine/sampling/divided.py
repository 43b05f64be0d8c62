"""Logits whose vocabulary is divided among ranks: plain choices of tokens are made without bringing the parts together.

Noise is a function of (seed, position, token id), so each rank can find the best token of its own part. What travels is
five numbers a row: the best score, its token, that token's logit, the log of the sum of exponentials, and whether all
logits were finite.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as Rows

import msgspec
import torch

from engine.device.transfer import to_device
from engine.request import GREEDY_BELOW, SamplingParams
from engine.sampling.filters import NEGATIVE_INFINITY, best_tokens
from engine.sampling.logprobs import all_finite, widened
from engine.sampling.noise import gumbel_noise
from engine.sampling.picker import Picked
from engine.sequence import Sequence

FIGURES = 5
"""Numbers of a row that travel."""


class PlainChoice(msgspec.Struct, frozen=True, array_like=True):
    """How tokens are chosen for n spans, where no token's chance depends on those of other parts of the vocabulary."""

    temperatures: list[float]
    """Of each span; below GREEDY_BELOW the likeliest token is taken."""
    seeds: list[int]
    sampled: bool
    """Any temperature is above that; the positions of the tokens to choose are needed then."""
    barred: list[tuple[int, int]]
    """(span, token) of tokens that a span's answer never holds."""

    @classmethod
    def of(cls, params: Rows[SamplingParams], barred: Rows[frozenset[int]]) -> PlainChoice:
        """By the parameters of n spans, and the tokens that each of them never holds."""
        return cls(
            temperatures=[own.temperature for own in params],
            seeds=[own.seed for own in params],
            sampled=any(own.temperature >= GREEDY_BELOW for own in params),
            barred=[(i, token) for i, tokens in enumerate(barred) for token in tokens],
        )

    @classmethod
    def greedy(cls, count: int) -> PlainChoice:
        """The likeliest tokens of so many spans."""
        return cls([0.0] * count, [0] * count, False, [])


class DividedLogits(ABC):
    """Logits [n, r, V] of a step group, a part of V on each rank. Only rank 0 has such an object."""

    device: torch.device

    @abstractmethod
    def whole(self) -> torch.Tensor:
        """All of them, brought together: [n, r, V]; tokens that `pick` barred are minus infinity."""

    @abstractmethod
    def pick(self, choice: PlainChoice, positions: torch.Tensor | None) -> Picked:
        """The tokens chosen by a plain choice. positions: [n, r] int64, those of the tokens to choose; None only if
        nothing is sampled."""


Logits = torch.Tensor | DividedLogits
"""Logits of a step group, as policies pass them on."""


def whole(logits: Logits) -> torch.Tensor:
    """The logits as one tensor [n, r, V]."""
    return logits if isinstance(logits, torch.Tensor) else logits.whole()


def is_plain(params: SamplingParams) -> bool:
    """Whether a request's tokens can be chosen from parts of the vocabulary: no edits, and no filter."""
    filtered = params.temperature >= GREEDY_BELOW and (params.top_k > 0 or params.top_p < 1 or params.min_p > 0)
    return not (filtered or params.edits)


def plain_choice(seqs: Rows[Sequence]) -> PlainChoice | None:
    """The choice of these sequences' tokens without their grammars, if it is a plain one."""
    params = [seq.request.sampling for seq in seqs]
    if not all(map(is_plain, params)):
        return None
    return PlainChoice.of(params, [seq.barred_token_ids for seq in seqs])


def best_of_part(
    logits: torch.Tensor, first: int, banned: Rows[int], choice: PlainChoice, positions: torch.Tensor | None
) -> torch.Tensor:
    """The figures of one part: [n, r, FIGURES] float64.

    logits: [n, r, v] of tokens from `first` on; banned and barred ones become minus infinity in place. banned: tokens
    that no answer holds. positions: see DividedLogits.pick.
    """
    finite = all_finite(logits)
    size, device = logits.shape[-1], logits.device
    held = [token - first for token in banned if first <= token < first + size]
    if held:
        logits.index_fill_(-1, to_device(held, device), NEGATIVE_INFINITY)
    barred = [(span, token - first) for span, token in choice.barred if first <= token < first + size]
    if barred:
        spans, tokens = to_device(barred, device).unbind(dim=1)
        logits[spans, :, tokens] = NEGATIVE_INFINITY
    rows = widened(logits)
    scores = _scores(rows, first, choice, positions)
    best = best_tokens(scores)[..., None]
    figures = (
        scores.gather(-1, best)[..., 0], best[..., 0] + first, rows.gather(-1, best)[..., 0], rows.logsumexp(dim=-1),
        finite[:, None].expand(rows.shape[:2]),
    )  # fmt: skip
    return torch.stack([figure.double() for figure in figures], dim=-1)


def _scores(rows: torch.Tensor, first: int, choice: PlainChoice, positions: torch.Tensor | None) -> torch.Tensor:
    """As in `filters.noisy_scores`, for a part of the vocabulary; the logits themselves where nothing is sampled."""
    sampled = [i for i, temperature in enumerate(choice.temperatures) if temperature >= GREEDY_BELOW]
    if not sampled or positions is None:
        return rows
    device = rows.device
    index = to_device(sampled, device)
    temperatures = to_device([choice.temperatures[i] for i in sampled], device, rows.dtype)
    seeds = to_device([choice.seeds[i] for i in sampled], device)
    noise = gumbel_noise(seeds, positions[index], rows.shape[-1], first)
    scores = (rows[index] / temperatures[:, None, None]).add_(noise)
    return scores if len(sampled) == len(rows) else rows.index_copy(0, index, scores)


def combine(parts: Rows[torch.Tensor], dtype: torch.dtype) -> Picked:
    """The choice from the figures of all parts, in the order of the vocabulary. dtype: of the log-probabilities."""
    figures = torch.stack(list(parts), dim=-1)  # [n, r, FIGURES, ranks]
    best = best_tokens(figures[..., 0, :])[..., None]  # of equals the first: the lowest token
    ids, logits = (figures[..., i, :].gather(-1, best)[..., 0] for i in (1, 2))
    logprobs = logits - figures[..., 3, :].logsumexp(dim=-1)
    return Picked(ids.long(), logprobs.to(dtype), (figures[..., 4, :] == 1).all(dim=-1).all(dim=-1))
