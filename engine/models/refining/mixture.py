"""What follows attention in such a layer: a plain MLP and experts side by side, each with norms of their own."""

from __future__ import annotations

import torch

from engine.models.elementwise import Elementwise
from engine.models.linear.base import Target, TensorTarget
from engine.models.mlp.config import ExpertConfig
from engine.models.mlp.mixture import MixtureMLP
from engine.models.mlp.router import Router


class NormedRouter(Router):
    """A Router that norms and scales its own input, and scales what each expert counts."""

    def __init__(
        self, config: ExpertConfig, hidden: int, dtype: torch.dtype, device: torch.device, elementwise: Elementwise
    ) -> None:
        """elementwise: norms."""
        super().__init__(config, hidden, dtype, device)
        self._norm = elementwise.norm
        self._factor = hidden**-0.5
        self._ones = torch.ones(hidden, dtype=self._computed, device=device)
        self.scale = torch.empty(hidden, dtype=self._computed, device=device)
        self.expert_scale = torch.empty(config.num_experts, dtype=self._computed, device=device)

    def choose(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See Router. x: not normed."""
        normed = self._norm(x.to(self._computed), self._ones)
        weights, experts = super().choose(normed * self.scale * self._factor)
        return (weights * self.expert_scale[experts]).to(x.dtype), experts

    def targets(self) -> dict[str, Target]:
        """See Router. `gate.scale`, of the input's elements, and `gate.expert_scale`, of the experts."""
        own = {"gate.scale": TensorTarget(self.scale), "gate.expert_scale": TensorTarget(self.expert_scale)}
        return {**super().targets(), **own}

    @property
    def num_bytes(self) -> int:
        """See Linear."""
        return super().num_bytes + self.scale.nbytes + self.expert_scale.nbytes


class ParallelMLP(MixtureMLP):
    """norm(shared(norm(x))) + norm(experts(norm(x))): the shared MLP and the mixture of a layer, not normed as one."""

    def __init__(
        self,
        config: ExpertConfig,
        hidden: int,
        dtype: torch.dtype,
        device: torch.device,
        storage: str,
        elementwise: Elementwise,
    ) -> None:
        """See MixtureMLP. elementwise: norms for the router."""
        super().__init__(config, hidden, dtype, device, storage)
        self.router = NormedRouter(config, hidden, dtype, device, elementwise)
        names = ("shared_in", "shared_out", "experts_in", "experts_out")
        self.norms = {name: torch.empty(hidden, dtype=dtype, device=device) for name in names}

    def add_to(self, total: torch.Tensor, x: torch.Tensor, elementwise: Elementwise) -> None:
        """See MixtureMLP. x: not normed."""
        if self.shared is None:
            raise ValueError("such a layer has an MLP that every token takes")
        norm, norms = elementwise.norm, self.norms
        weights, chosen = self.router.choose(x)
        mixed = torch.zeros_like(x)
        self.experts.add_to(mixed, norm(x, norms["experts_in"]), weights, chosen, elementwise)
        total += norm(self.shared(norm(x, norms["shared_in"]), elementwise), norms["shared_out"])
        total += norm(mixed, norms["experts_out"])
