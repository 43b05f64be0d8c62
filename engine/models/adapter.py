"""The draft adapter: low-rank updates of matrices (LoRA, Hu et al. 2021), applied to the rows that draft."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from engine.models.divided.linears import summed
from engine.models.linear.base import Linear, Target
from engine.models.linear.dense import DenseLinear
from engine.ranks.group import ALONE, RankGroup

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""What an adapter may update, by transformers' names."""

CUT_BY_COLUMNS = ("o_proj", "down_proj")
"""Those of which ranks that share a model have some of the inputs each."""


@dataclass(frozen=True, kw_only=True)
class DraftAdapter:
    """Shape of a LoRA on the same matrices of every layer."""

    rank: int
    alpha: float
    modules: tuple[str, ...] = ("o_proj",)
    """The matrices, by names of MODULES."""

    @property
    def scale(self) -> float:
        """Factor of the update."""
        return self.alpha / self.rank


class LowRankUpdate:
    """The update up @ down of one matrix [outputs, inputs]."""

    def __init__(
        self,
        rank: int,
        inputs: int,
        outputs: int,
        dtype: torch.dtype,
        device: torch.device,
        group: RankGroup = ALONE,
    ) -> None:
        """group: the ranks that share it, each with some of the inputs."""
        self.down = summed(DenseLinear.empty({"lora_A": rank}, inputs, dtype, device), group)
        self.up = DenseLinear.empty({"lora_B": outputs}, rank, dtype, device)

    def add_to(self, total: torch.Tensor, x: torch.Tensor, scale: torch.Tensor) -> None:
        """Adds the update's product, in place. total: [T, outputs]; x: [T, inputs]; scale: [T, 1], 0 where it does not
        apply."""
        self.up.add_to(total, self.down(x) * scale)

    def targets(self) -> dict[str, Target]:
        """The tensors of a checkpoint that fill it, under PEFT's names."""
        return {**self.down.targets(), **self.up.targets()}


class LayerUpdates:
    """The updates of one layer's matrices, by names of MODULES; none without an adapter."""

    def __init__(
        self,
        adapter: DraftAdapter | None,
        shapes: Mapping[str, tuple[int, int]],
        dtype: torch.dtype,
        device: torch.device,
        group: RankGroup = ALONE,
    ) -> None:
        """shapes: (outputs, inputs) of the layer's matrices, by the same names. group: the ranks that share them."""
        modules = () if adapter is None else adapter.modules
        rank = 0 if adapter is None else adapter.rank
        self._by_name = {
            name: LowRankUpdate(rank, inputs, outputs, dtype, device, group if name in CUT_BY_COLUMNS else ALONE)
            for name, (outputs, inputs) in shapes.items()
            if name in modules
        }

    def touches(self, names: Iterable[str]) -> bool:
        """Whether any of these matrices has an update."""
        return any(name in self._by_name for name in names)

    def add_to(self, total: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, sizes: Mapping[str, int]) -> None:
        """Adds the updates' products of matrices that are one below the other, in place.

        total: [T, outputs of all]; x: [T, inputs]; scale: [T, 1]; sizes: outputs of each, by name, in order.
        """
        for name, columns in zip(sizes, total.split_with_sizes(list(sizes.values()), dim=1), strict=True):
            update = self._by_name.get(name)
            if update is not None:
                update.add_to(columns, x, scale)

    @property
    def linears(self) -> tuple[Linear, ...]:
        """The matrices of all updates."""
        return tuple(matrix for update in self._by_name.values() for matrix in (update.down, update.up))

    def targets(self) -> dict[str, Target]:
        """The tensors of a checkpoint that fill them: `o_proj.lora_A.weight` and so on."""
        return {
            f"{name}.{part}": target
            for name, update in self._by_name.items()
            for part, target in update.targets().items()
        }
