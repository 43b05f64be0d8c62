"""Attention where layers differ: by the shape of their heads, or by a window of positions that a token sees at most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from engine.attention.base import AttentionBackend
from engine.attention.packed_pass import ForwardBatch
from engine.attention.sdpa import SdpaAttention
from engine.device.transfer import to_device
from engine.kv_cache.pool import KVCachePool


class WindowAttention(SdpaAttention):
    """SdpaAttention under one more rule: a token sees nothing before its origin + 1 - window.

    Its origin is its own position, or the first one of its canvas (`ForwardBatch.host_origins`). Pages that no token of
    a span sees are not read: the pass is attended as if each span's first page in sight were its sequence's first.
    """

    def __init__(self, pool: KVCachePool, num_heads: int, window: int, scale: float | None = None) -> None:
        """window: positions, the origin included."""
        super().__init__(pool, num_heads, scale)
        self._window = window
        self._first_pages = np.empty(0, dtype=np.int64)
        self._first_seen = torch.empty(0, dtype=torch.int64, device=pool.device)

    def prepare(self, batch: ForwardBatch) -> None:
        """See AttentionBackend."""
        if batch.host_origins is None:
            raise ValueError("attention by windows needs the origins of a pass")
        seen = np.maximum(batch.host_origins + 1 - self._window, 0)  # [T]
        size, starts = self._pool.page_size, batch.span_offsets[:-1]
        self._first_pages = np.minimum.reduceat(seen, starts) // size  # [S]
        skipped = (self._first_pages * size).repeat(np.diff(batch.span_offsets))  # [T]
        self._first_seen = to_device(seen - skipped, self._pool.device)
        ends = [end - int(page) * size for end, page in zip(batch.span_kv_ends, self._first_pages, strict=True)]
        super().prepare(
            replace(
                batch,
                kv_limits=batch.kv_limits - to_device(skipped, self._pool.device),
                host_kv_limits=batch.host_kv_limits - skipped,
                span_kv_ends=ends,
            )
        )

    def _columns(self, spans: list[int], columns: np.ndarray) -> np.ndarray:
        return columns + self._first_pages[spans][:, None]

    def _sees(
        self, batch: ForwardBatch, where: slice | torch.Tensor, on_host: np.ndarray, places: torch.Tensor
    ) -> torch.Tensor:
        # Tokens of a span with one limit are those of a canvas, or one alone: they have one origin, too.
        return super()._sees(batch, where, on_host, places) & (
            self._per_row(self._first_seen[where], on_host) <= places
        )


class LayeredAttention(AttentionBackend):
    """A backend for each kind of layers."""

    def __init__(self, backends: list[AttentionBackend], layers: Mapping[int, tuple[int, int]]) -> None:
        """layers: of each layer, which backend it has and which of that one's layers it is."""
        self._backends = backends
        self._layers = layers

    def prepare(self, batch: ForwardBatch) -> None:
        """See AttentionBackend."""
        for backend in self._backends:
            backend.prepare(batch)

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int) -> torch.Tensor:
        """See AttentionBackend. The shapes are those of the layer's kind."""
        backend, own = self._layers[layer]
        return self._backends[backend].forward(q, k, v, own)
