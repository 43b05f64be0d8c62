"""Router: which experts a token goes to, and with what weights."""

from __future__ import annotations

import torch

from engine.models.linear.base import Target, TensorTarget
from engine.models.linear.dense import DenseLinear
from engine.models.mlp.config import ExpertConfig

SMALLEST_SUM = 1e-20
"""Added to the sum of sigmoids before it divides, as in the published implementations."""


class Router(DenseLinear):
    """A matrix [num_experts, hidden_size] whose products are scores. float32 at least, whatever the model's dtype: two
    experts that are nearly alike would change places with every rounding."""

    def __init__(self, config: ExpertConfig, hidden: int, dtype: torch.dtype, device: torch.device) -> None:
        self._config = config
        self._computed = torch.promote_types(dtype, torch.float32)
        weight = torch.empty((config.num_experts, hidden), dtype=self._computed, device=device)
        super().__init__({"gate": config.num_experts}, weight)
        self.choice_bias: torch.Tensor | None = None
        if config.choice_bias:
            self.choice_bias = torch.empty(config.num_experts, dtype=self._computed, device=device)

    def choose(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x: [T, hidden_size]. Returns the weights (of x's dtype) and the experts of each row: [T, per_token] both."""
        config = self._config
        logits = self(x.to(self._computed))
        scores = logits.softmax(dim=-1) if config.scoring == "softmax" else logits.sigmoid_()
        by = scores if self.choice_bias is None else scores + self.choice_bias
        if config.num_groups > 1:
            by = self._in_best_groups(by)
        experts = by.topk(config.per_token, dim=-1).indices
        weights = scores.gather(1, experts)
        if config.renormalised:
            total = weights.sum(dim=-1, keepdim=True)
            weights = weights / (total + SMALLEST_SUM if config.scoring == "sigmoid" else total)
        if config.scaling != 1.0:
            weights = weights * config.scaling
        return weights.to(x.dtype), experts

    def _in_best_groups(self, by: torch.Tensor) -> torch.Tensor:
        """The scores to choose by, -inf outside the best groups. [T, num_experts] both."""
        grouped = by.view(len(by), self._config.num_groups, -1)
        best = grouped.topk(2, dim=-1).values.sum(dim=-1)  # [T, groups]
        kept = best.topk(self._config.groups_kept, dim=-1).indices
        out = torch.ones_like(best, dtype=torch.bool).scatter_(1, kept, False)
        return grouped.masked_fill(out[..., None], -torch.inf).view_as(by)

    def targets(self) -> dict[str, Target]:
        """See Linear. `gate.weight`, and `gate.bias`, which is the bias of the choice."""
        found = super().targets()
        if self.choice_bias is not None:
            found["gate.bias"] = TensorTarget(self.choice_bias)
        return found

    @property
    def num_bytes(self) -> int:
        """See Linear."""
        return super().num_bytes + (0 if self.choice_bias is None else self.choice_bias.nbytes)
