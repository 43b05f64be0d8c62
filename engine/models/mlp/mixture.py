"""MixtureMLP: a router, its experts, and what every token takes beside them."""

from __future__ import annotations

import torch

from engine.models.elementwise import Elementwise
from engine.models.linear.base import Linear, Target
from engine.models.mlp.config import ExpertConfig
from engine.models.mlp.experts import Experts, GroupedExperts, SeparateExperts
from engine.models.mlp.gated import GatedMLP
from engine.models.mlp.router import Router
from engine.ranks.group import ALONE, RankGroup


class MixtureMLP:
    """The sum of a few experts for each token, weighed by the router, and of the shared MLP where there is one."""

    def __init__(
        self,
        config: ExpertConfig,
        hidden: int,
        dtype: torch.dtype,
        device: torch.device,
        storage: str,
        group: RankGroup = ALONE,
    ) -> None:
        """hidden: the size of inputs and outputs. storage: of the matrices but the router's; a key of LINEARS.

        group: the ranks that share it: each has some of the experts, a part of the shared MLP, and the router.
        """
        self._group = group
        self.router = Router(config, hidden, dtype, device)
        self.experts: Experts
        if device.type == "cuda":
            self.experts = GroupedExperts(config, hidden, dtype, device)
        else:
            self.experts = SeparateExperts(config, hidden, dtype, device, storage)
        self.shared: GatedMLP | None = None
        if config.shared_size:
            self.shared = GatedMLP(hidden, config.shared_size, dtype, device, storage, activation=config.activation)

    def add_to(self, total: torch.Tensor, x: torch.Tensor, elementwise: Elementwise) -> None:
        """Adds the mixture of x to total, in place. Both: [T, hidden_size]."""
        if self._group.size > 1:
            own = torch.zeros_like(total)
            self._add_own(own, x, elementwise)
            total.add_(self._group.sum(own))
        else:
            self._add_own(total, x, elementwise)

    def _add_own(self, total: torch.Tensor, x: torch.Tensor, elementwise: Elementwise) -> None:
        """Adds this rank's part of the mixture."""
        weights, chosen = self.router.choose(x)
        self.experts.add_to(total, x, weights, chosen, elementwise)
        if self.shared is not None:
            self.shared.add_to(total, x, elementwise)

    @property
    def linears(self) -> tuple[Linear, ...]:
        """The matrices that every pass reads: without the experts'."""
        return self.router, *(self.shared.linears if self.shared is not None else ())

    def targets(self) -> dict[str, Target]:
        """The tensors of a checkpoint that fill it, under the names transformers gives Qwen3-MoE and GLM-4-MoE."""
        found = self.router.targets()
        found |= {f"experts.{name}": target for name, target in self.experts.targets().items()}
        if self.shared is not None:
            found |= {f"shared_experts.{name}": target for name, target in self.shared.targets().items()}
        return found
