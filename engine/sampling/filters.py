"""From edited logits to tokens: temperature, top_k, top_p, min_p, noise and the best score. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch

from engine.device.transfer import to_device
from engine.request import SamplingParams
from engine.sampling.noise import gumbel_noise

NEGATIVE_INFINITY = float("-inf")


def best_tokens(scores: torch.Tensor) -> torch.Tensor:
    """The highest of [..., V] scores, of equals the first: [...] int64."""
    if scores.device.type != "cpu":
        return scores.argmax(dim=-1)
    return torch.from_numpy(scores.numpy().argmax(axis=-1))  # vectorised, unlike torch's: 15 times as fast


def sample(logits: torch.Tensor, params: Rows[SamplingParams], positions: torch.Tensor) -> torch.Tensor:
    """Seeded sampling: the argmax of `noisy_scores`. Returns [n, r] int64."""
    return best_tokens(noisy_scores(logits, params, positions))


def noisy_scores(logits: torch.Tensor, params: Rows[SamplingParams], positions: torch.Tensor) -> torch.Tensor:
    """Filtered `logits / temperature` plus positional Gumbel noise.

    logits: [n, r, V]; params: n, all with temperature above zero; positions: [n, r]. Returns [n, r, V].
    """
    device = logits.device
    table = to_device([(p.temperature, p.top_p, p.min_p) for p in params], device, logits.dtype)
    temperature, top_p, min_p = (column[:, None, None] for column in table.unbind(dim=1))
    scores = logits / temperature
    if any(p.top_k > 0 or p.top_p < 1 for p in params):
        top_k = to_device([p.top_k if p.top_k > 0 else logits.shape[-1] for p in params], device)
        scores = filter_top(scores, top_k[:, None, None], top_p)
    if any(p.min_p > 0 for p in params):
        floor = scores.amax(dim=-1, keepdim=True) + torch.log(min_p)
        scores = scores.masked_fill(scores < floor, NEGATIVE_INFINITY)
    seeds = to_device([p.seed for p in params], device)
    return scores.add_(gumbel_noise(seeds, positions, logits.shape[-1]))


def filter_top(scores: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Keeps the `top_k` best and, of their renormalised distribution, the smallest set of mass `top_p`.

    scores: [n, r, V]; top_k (int), top_p: [n, 1, 1]. Filtered scores are -inf. The best token always stays. Equal
    scores are kept or dropped by token id, lower first, so that the result does not depend on the batch.
    """
    ordered, order = scores.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(scores.shape[-1], device=scores.device)
    ordered = ordered.masked_fill(rank >= top_k, NEGATIVE_INFINITY)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    # top_p = 1 must keep everything: rounding lets `before` reach 1 early.
    dropped = (before >= top_p) & (top_p < 1) & (rank > 0)
    ordered = ordered.masked_fill(dropped, NEGATIVE_INFINITY)
    return torch.empty_like(scores).scatter_(-1, order, ordered)
