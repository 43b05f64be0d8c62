"""The interface between the decoder and a device's attention: one call for every phase."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from engine.attention.packed_pass import ForwardBatch, PackedPass


class AttentionBackend(ABC):
    """Paged attention under the one mask: query token t sees KV positions [0, kv_limits[t]) of its own sequence."""

    def warm_up(self) -> None:  # noqa: B027 - nothing to compile
        """Compiles what is compiled at its first use, before any request is served. May write to the pool."""

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


@dataclass(slots=True, eq=False)
class Tiles:
    """A pass cut into tiles of query tokens, on the host."""

    rows: list[tuple[int, int, int]]
    """Of each tile its first query token, number of query tokens, and row of the page table."""
    block_rows: int
    """Rows of the kernel's tile: query tokens times heads of a group, padded."""
    longest: int
    """Most KV positions that any query token sees."""


class TileCounts(NamedTuple):
    """The part of a pass's tiles that a capture fixes."""

    num_tiles: int
    """At least as many as the pass has."""
    block_rows: int
    """See Tiles."""


class CapturableAttention(AttentionBackend):
    """A backend whose launches depend on a pass by its TileCounts alone, so that they can be captured and replayed.

    Everything else that differs between two passes is read on the device: slots, kv limits, the page table, and the
    *layout*, a small array that the host computes for each pass.
    """

    @abstractmethod
    def tiles(self, batch: ForwardBatch | PackedPass) -> Tiles:
        """Cuts a pass into tiles."""

    @abstractmethod
    def layout(self, tiles: Tiles, room: int) -> np.ndarray:
        """The array that the kernels read of a pass. room: number of tiles it is for, no fewer than there are."""

    @abstractmethod
    def prepare_capture(self, batch: ForwardBatch, counts: TileCounts) -> torch.Tensor:
        """Takes the place of `prepare` for a pass that is captured.

        Returns the layout that `forward` reads from now on, on the device: at first that of a pass of no tokens, to be
        overwritten with `layout(tiles, counts.num_tiles)` before every replay.
        """

    @abstractmethod
    def capture_counts(self, num_tokens: int) -> tuple[list[TileCounts], list[TileCounts]]:
        """The counts worth capturing for passes of so many query tokens: those of spans of one width, and further ones
        that hold any mix of widths."""
