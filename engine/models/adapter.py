"""The draft adapter: a low-rank update of a matrix (LoRA, Hu et al. 2021), applied to the rows that draft."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.models.linear.base import Target
from engine.models.linear.dense import DenseLinear


@dataclass(frozen=True, kw_only=True)
class DraftAdapter:
    """Shape of a LoRA on every output projection."""

    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        """Factor of the update."""
        return self.alpha / self.rank


class LowRankUpdate:
    """The update up @ down of one matrix [outputs, inputs]."""

    def __init__(self, rank: int, inputs: int, outputs: int, dtype: torch.dtype, device: torch.device) -> None:
        self.down = DenseLinear.empty({"lora_A": rank}, inputs, dtype, device)
        self.up = DenseLinear.empty({"lora_B": outputs}, rank, dtype, device)

    def add_to(self, total: torch.Tensor, x: torch.Tensor, scale: torch.Tensor) -> None:
        """Adds the update's product, in place. total: [T, outputs]; x: [T, inputs]; scale: [T, 1], 0 where it does not
        apply."""
        self.up.add_to(total, self.down(x) * scale)

    def targets(self) -> dict[str, Target]:
        """The tensors of a checkpoint that fill it, under PEFT's names."""
        return {**self.down.targets(), **self.up.targets()}
