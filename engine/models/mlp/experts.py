"""Experts: the many small MLPs of a layer, and the product of a pass's tokens with those that were chosen for them.

Tokens are brought into the order of their experts, so that each expert in use is multiplied once, with rows that lie
together. What a row becomes depends on its own experts alone; the order of a sum is that of the router's choice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from engine.models.divided.linears import AbsentTarget
from engine.models.elementwise import Elementwise
from engine.models.linear.base import Linear, Target, TensorTarget
from engine.models.mlp.config import ExpertConfig
from engine.models.mlp.gated import GatedMLP, activated


class Experts(ABC):
    """The experts of one layer."""

    def __init__(self, config: ExpertConfig) -> None:
        self.config = config

    def add_to(
        self,
        total: torch.Tensor,
        x: torch.Tensor,
        weights: torch.Tensor,
        chosen: torch.Tensor,
        elementwise: Elementwise,
    ) -> None:
        """Adds the weighed sum of each row's experts to total, in place. total, x: [T, hidden_size].

        weights, chosen: [T, per_token], the experts of each row and what each of them counts.
        """
        tokens, count = chosen.shape
        ordered, order = self._place_of(chosen).flatten().sort(stable=True)  # [T * per_token]
        products = self.multiply(x.index_select(0, order.div(count, rounding_mode="floor")), ordered, elementwise)
        own = torch.empty_like(products).index_copy_(0, order, products).view(tokens, count, -1)
        total.unsqueeze(1).baddbmm_(weights.unsqueeze(1), own)

    def _place_of(self, chosen: torch.Tensor) -> torch.Tensor:
        """Experts by their place among those that are here; of those that are not, the place after the last one."""
        numbers = self.config.numbers
        if len(numbers) == self.config.num_experts:
            return chosen
        places = chosen - numbers.start
        return places.masked_fill_((places < 0) | (places >= len(numbers)), len(numbers))

    @abstractmethod
    def multiply(self, rows: torch.Tensor, experts: torch.Tensor, elementwise: Elementwise) -> torch.Tensor:
        """Each row's own MLP, zeros where that is not here. rows: [R, hidden_size]; experts: [R], ascending places.
        Returns [R, hidden_size]."""

    def targets(self) -> dict[str, Target]:
        """The tensors of a checkpoint that fill them: those of a GatedMLP, after `NUMBER.`, of every expert."""
        numbers = self.config.numbers
        absent: dict[str, Target] = {name: AbsentTarget(own.shape) for name, own in self.expert_targets(0).items()}
        return {
            f"{number}.{name}": target
            for number in range(self.config.num_experts)
            for name, target in (self.expert_targets(number - numbers.start) if number in numbers else absent).items()
        }

    @abstractmethod
    def expert_targets(self, place: int) -> dict[str, Target]:
        """The tensors that fill one of the experts that are here, counted from 0."""

    @property
    @abstractmethod
    def linears(self) -> tuple[Linear, ...]:
        """The matrices, where each is multiplied on its own."""

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Bytes of all experts."""

    @property
    @abstractmethod
    def operations(self) -> int:
        """Operations for each row of x; a multiply-add is two. Of experts on several ranks: this one's, on average."""

    @property
    def _used(self) -> float:
        """Of the experts that are here, those that a row is sent to, on average."""
        return self.config.per_token * len(self.config.numbers) / self.config.num_experts


class SeparateExperts(Experts):
    """Each expert is a GatedMLP of its own, in any storage. For a CPU: how many rows an expert has is asked for.

    torch's grouped product does the same there, matrix by matrix, and knows neither packed storages nor float64.
    """

    def __init__(
        self, config: ExpertConfig, hidden: int, dtype: torch.dtype, device: torch.device, storage: str
    ) -> None:
        super().__init__(config)
        inner, activation = config.intermediate_size, config.activation
        self._mlps = [GatedMLP(hidden, inner, dtype, device, storage, activation=activation) for _ in config.numbers]

    def multiply(self, rows: torch.Tensor, experts: torch.Tensor, elementwise: Elementwise) -> torch.Tensor:
        """See Experts."""
        counts = experts.bincount(minlength=len(self._mlps) + 1).tolist()
        elsewhere = counts.pop()
        used = [mlp for mlp, count in zip(self._mlps, counts, strict=True) if count]
        sizes = [count for count in counts if count]
        products = []
        if used:
            here = rows[: len(rows) - elsewhere].split_with_sizes(sizes)
            between = [mlp.gate_up(part) for mlp, part in zip(used, here, strict=True)]
            parts = activated(elementwise, torch.cat(between), self.config.activation).split_with_sizes(sizes)
            products = [mlp.down(part) for mlp, part in zip(used, parts, strict=True)]
        if elsewhere:
            products.append(rows.new_zeros(elsewhere, rows.shape[1]))
        return torch.cat(products)

    def expert_targets(self, place: int) -> dict[str, Target]:
        """See Experts."""
        return self._mlps[place].targets()

    @property
    def linears(self) -> tuple[Linear, ...]:
        """See Experts."""
        return tuple(linear for mlp in self._mlps for linear in mlp.linears)

    @property
    def num_bytes(self) -> int:
        """See Experts."""
        return sum(linear.num_bytes for linear in self.linears)

    @property
    def operations(self) -> int:
        """See Experts."""
        return round(self._used * sum(linear.operations for linear in self._mlps[0].linears))


class GroupedExperts(Experts):
    """All experts in two tensors, multiplied by torch's grouped product. For a GPU: where an expert's rows end is
    device data, so that a captured pass can be replayed with other choices."""

    linears = ()

    def __init__(self, config: ExpertConfig, hidden: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(config)
        inner = config.intermediate_size
        here = len(config.numbers)
        self._gate_up = torch.empty((here, 2 * inner, hidden), dtype=dtype, device=device)
        self._down = torch.empty((here, hidden, inner), dtype=dtype, device=device)
        self._places = torch.arange(here, device=device)

    def multiply(self, rows: torch.Tensor, experts: torch.Tensor, elementwise: Elementwise) -> torch.Tensor:
        """See Experts."""
        ends = torch.searchsorted(experts, self._places, right=True, out_int32=True)
        between = torch._grouped_mm(rows, self._gate_up.transpose(1, 2), offs=ends)
        inner = activated(elementwise, between, self.config.activation)
        products = torch._grouped_mm(inner, self._down.transpose(1, 2), offs=ends)
        if len(self._places) < self.config.num_experts:
            # Rows after the last end are not written: whatever stood in that memory is there.
            products.masked_fill_((experts == len(self._places))[:, None], 0)
        return products

    def expert_targets(self, place: int) -> dict[str, Target]:
        """See Experts."""
        gate, up = self._gate_up[place].chunk(2)
        parts = {"gate_proj": gate, "up_proj": up, "down_proj": self._down[place]}
        return {f"{name}.weight": TensorTarget(part) for name, part in parts.items()}

    @property
    def num_bytes(self) -> int:
        """See Experts."""
        return self._gate_up.nbytes + self._down.nbytes

    @property
    def operations(self) -> int:
        """See Experts."""
        return round(2 * self._used * (self._gate_up[0].numel() + self._down[0].numel()))
