"""GatedMLP: the plain MLP of a layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from engine.models.adapter import LayerUpdates
from engine.models.divided.linears import summed
from engine.models.elementwise import Elementwise
from engine.models.linear.base import Linear, Target
from engine.models.linear.storages import LINEARS
from engine.models.mlp.config import Activation
from engine.ranks.group import ALONE, RankGroup


class GatedMLP:
    """down(act(gate(x)) * up(x)). gate and up are one matrix and one product."""

    experts = None
    """No part of it is for some tokens alone."""

    def __init__(
        self,
        hidden: int,
        inner: int,
        dtype: torch.dtype,
        device: torch.device,
        storage: str,
        group: RankGroup = ALONE,
        activation: Activation = "silu",
    ) -> None:
        """hidden, inner: the sizes of its inputs and outputs, and between. storage: a key of LINEARS.

        group: the ranks that share it, each with a part of `inner`, and sum what they make of it.
        """
        make = LINEARS[storage]
        self.activation = activation
        self.gate_up = make({"gate": inner, "up": inner}, hidden, dtype, device, False)
        self.down = summed(make({"down": hidden}, inner, dtype, device, False), group)

    def add_to(self, total: torch.Tensor, x: torch.Tensor, elementwise: Elementwise) -> None:
        """Adds the MLP of x to total, in place. Both: [T, hidden_size]."""
        self.down.add_to(total, activated(elementwise, self.gate_up(x), self.activation))

    def __call__(self, x: torch.Tensor, elementwise: Elementwise) -> torch.Tensor:
        """The MLP of x. Both: [T, hidden_size]."""
        return self.down(activated(elementwise, self.gate_up(x), self.activation))

    def add_updated_to(
        self,
        total: torch.Tensor,
        x: torch.Tensor,
        elementwise: Elementwise,
        updates: LayerUpdates,
        drafting: torch.Tensor,
    ) -> None:
        """The same with a draft adapter. drafting: [T, 1], the scale of its updates, 0 where they do not apply."""
        inner = self.gate_up(x)
        width = inner.shape[1] // 2
        updates.add_to(inner, x, drafting, {"gate_proj": width, "up_proj": width})
        between = activated(elementwise, inner, self.activation)
        self.down.add_to(total, between)
        updates.add_to(total, between, drafting, {"down_proj": total.shape[1]})

    @property
    def linears(self) -> tuple[Linear, ...]:
        """The matrices that every pass reads."""
        return self.gate_up, self.down

    def targets(self) -> dict[str, Target]:
        """The tensors of a checkpoint that fill it, under the names transformers gives a Llama-like MLP."""
        return projections({**self.gate_up.targets(), **self.down.targets()})


def activated(elementwise: Elementwise, gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
    """act(gate) * up. gate_up: [T, 2 * inner]. Returns [T, inner]."""
    return elementwise.silu_mul(gate_up) if activation == "silu" else elementwise.gelu_mul(gate_up)


def projections(targets: Mapping[str, Target]) -> dict[str, Target]:
    """`q.weight` -> `q_proj.weight`."""
    return {name.replace(".", "_proj.", 1): target for name, target in targets.items()}
