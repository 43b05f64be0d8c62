"""Chosen: what a sampler chose at the rows of a step group."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.sampling.divided import Logits, whole
from engine.sampling.logprobs import log_probabilities, widened
from engine.sampling.picker import Picked


@dataclass(slots=True)
class Chosen:
    """What was chosen at every logit row of a group, on the device."""

    token_ids: torch.Tensor
    """[n, r] int64; -1 where a grammar leaves nothing to choose."""
    finite: torch.Tensor
    """[n] bool: the model's logits held no NaN and no infinity."""
    rows: Logits
    """[n, r, V]: after bans, grammar, bias and penalties, before temperature: the distribution confidence is taken
    from. With a kernel of the model's dtype where nothing but bans changed it."""
    logprobs: torch.Tensor | None = None
    """[n, r]: natural-log probability of each chosen token; None until it has been computed."""

    @property
    def logits(self) -> torch.Tensor:
        """`rows` as one tensor, brought together if need be."""
        return whole(self.rows)

    def log_probabilities(self) -> torch.Tensor:
        """[n, r]: natural-log probability of each chosen token; any number where none was chosen."""
        if self.logprobs is None:
            self.logprobs = log_probabilities(widened(self.logits), self.token_ids.clamp(min=0))
        return self.logprobs

    @classmethod
    def of(cls, logits: Logits, picked: Picked) -> Chosen:
        """What was picked from the logits."""
        return cls(picked.token_ids, picked.finite, logits, picked.logprobs)
