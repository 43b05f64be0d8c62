"""ExpertConfig: the shape and the traits of a model's expert layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu"]
"""Of the gate of an MLP; `gelu` is its approximation by tanh."""


@dataclass(frozen=True, kw_only=True)
class ExpertConfig:
    """Expert layers: a router sends each token to a few of many small gated MLPs, and weighs what they return."""

    num_experts: int
    per_token: int
    """Experts that each token is sent to."""
    intermediate_size: int
    """Of one expert."""
    scoring: Literal["softmax", "sigmoid"]
    """What makes scores of the router's logits: one distribution over all experts, or each on its own."""
    renormalised: bool
    """The scores of a token's experts are divided by their sum."""
    choice_bias: bool = False
    """A bias is added to the scores to choose by, and not to weigh by."""
    num_groups: int = 1
    """Experts are chosen from the best groups alone; a group's score is the sum of its two best experts'."""
    groups_kept: int = 1
    scaling: float = 1.0
    """Multiplies the weights at last."""
    shared_size: int = 0
    """Intermediate size of one more MLP that every token takes, unweighed; 0: there is none."""
    num_dense_layers: int = 0
    """So many first layers have one plain MLP instead."""
    activation: Activation = "silu"
    held: range | None = None
    """The experts whose weights are here, where others are on other ranks. None: all."""

    @property
    def numbers(self) -> range:
        """The experts whose weights are here."""
        return range(self.num_experts) if self.held is None else self.held

    def expected_share(self, tokens: int) -> float:
        """The share of a layer's experts that so many tokens touch, if every choice is as likely as any other."""
        return 1.0 - (1.0 - self.per_token / self.num_experts) ** tokens
