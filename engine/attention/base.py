"""The seam between the decoder and the hardware: one attention call for every phase."""

from abc import ABC, abstractmethod

import torch

from engine.batch import ForwardBatch


class AttentionBackend(ABC):
    """Paged attention under the one mask: query token t sees KV positions [0, kv_limits[t]) of its own sequence."""

    def warm_up(self) -> None:  # noqa: B027 - nothing to compile
        """Compiles what is compiled at its first use, before any request is served; may scribble on the pool."""

    @abstractmethod
    def prepare(self, batch: ForwardBatch) -> None:
        """Computes, once a pass, what all layers share: gather indices, masks, tile tables."""

    @abstractmethod
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int) -> torch.Tensor:
        """Writes k and v of every query token to their slots, then attends.

        q: [T, num_heads, head_dim], rotated; k, v: [T, num_kv_heads, head_dim]. The softmax scale 1/sqrt(head_dim) is
        applied here.
        Returns [T, num_heads, head_dim]. Rows of one pass see each other's keys where their kv_limit allows.
        """
