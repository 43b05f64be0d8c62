"""TokenPicker: the last step of sampling, from edited logits to tokens, as a device may do it by kernels of its own."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import NamedTuple, Protocol

import torch

from engine.request import SamplingParams


class Picked(NamedTuple):
    """The tokens chosen for n spans with r rows each."""

    token_ids: torch.Tensor
    """[n, r] int64"""
    logprobs: torch.Tensor
    """[n, r] float32: natural-log probability of the token, before temperature and filters."""
    finite: torch.Tensor
    """[n] bool: no logit was NaN or infinite."""


class TokenPicker(Protocol):
    """Chooses a token at every row of a group of logits."""

    def warm_up(self, dtype: torch.dtype, vocab_size: int) -> None:
        """Compiles what is compiled at its first use, before any request is served. dtype: of the logits."""

    def pick(self, logits: torch.Tensor, params: Rows[SamplingParams], positions: torch.Tensor | None) -> Picked:
        """Bans, temperature, top_k, top_p, min_p, noise.

        logits: [n, r, V], contiguous; the banned ones become -inf. params: n. positions: [n, r] int64, those of the
        tokens to choose; None only if every temperature is 0.
        """
