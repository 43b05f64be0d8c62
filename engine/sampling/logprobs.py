"""Log-probabilities of tokens, and the checks on logits that they need. Pure functions."""

from __future__ import annotations

import torch


def widened(logits: torch.Tensor) -> torch.Tensor:
    """The logits as float32 where they are of a half type, else themselves."""
    return logits.float() if logits.dtype.itemsize < 4 else logits


def all_finite(logits: torch.Tensor) -> torch.Tensor:
    """[n] bool: no NaN and no infinity among [n, r, V] logits."""
    # In float32 at least: a sum over a vocabulary leaves float16's range.
    total = logits.sum(dim=(1, 2), dtype=torch.promote_types(logits.dtype, torch.float32))
    return total - total == 0


def log_probabilities(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Natural-log softmax probability of the given tokens. logits: [n, r, V]; token_ids: [n, r]. Returns [n, r]."""
    chosen = logits.gather(-1, token_ids[..., None])[..., 0]
    return chosen - logits.logsumexp(dim=-1)


def top_log_probabilities(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` likeliest tokens, best first. logits: [n, r, V]. Returns ids and log-probabilities, [n, r, count]."""
    top, ids = logits.topk(min(count, logits.shape[-1]), dim=-1)
    return ids, top - logits.logsumexp(dim=-1, keepdim=True)


def listed_log_probabilities(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Natural-log softmax probabilities of tokens that are the same at all rows of a span.

    logits: [n, r, V]; token_ids: [n, k]. Returns [n, r, k].
    """
    listed = logits.gather(-1, token_ids[:, None].expand(-1, logits.shape[1], -1))
    return listed - logits.logsumexp(dim=-1, keepdim=True)
