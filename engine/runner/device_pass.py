"""The device's part of a pass: from packed arrays to logits. A rank needs nothing else, and no Sequence."""

from __future__ import annotations

import torch

from engine.attention.packed_pass import PackedPass
from engine.device.transfer import to_device
from engine.gpu.graphs import PassGraphs
from engine.kv_cache.pool import KVCachePool
from engine.models.decoder import Decoder
from engine.runner.canvas_memory import CanvasMemory
from engine.runner.kernels import Kernels


class DevicePass:
    """Owns the model, the KV pool, the kernels and the captured passes of one device."""

    def __init__(
        self,
        decoder: Decoder,
        pool: KVCachePool,
        kernels: Kernels,
        graphs: PassGraphs | None = None,
        memory: CanvasMemory | None = None,
    ) -> None:
        """graphs: captured passes. Passes that fit none, and all where there are none, run operation by operation.
        memory: of canvases of random tokens, for a model that has them."""
        self.decoder = decoder
        self.pool = pool
        self.attention = kernels.attention
        self.elementwise = kernels.elementwise
        self.graphs = graphs
        self.memory = memory

    @torch.inference_mode()
    def run(self, packed: PackedPass) -> torch.Tensor | None:
        """One pass. Returns the logits of its rows [R, V], of the model's dtype; None if there are none.

        K and V of every query token are written to its pages; nothing else changes, so a pass may be repeated.
        """
        pool = self.pool
        if packed.cleared_pages:
            pool.clear(packed.cleared_pages)
        for row, first, pages in packed.mapped_pages:
            pool.map_pages(row, first, pages)
        hidden = None if self.graphs is None else self.graphs.forward(packed)
        if hidden is None:
            batch = packed.to(pool.device, pool.dtype)
            if self.memory is not None and packed.canvases is not None:
                batch.canvas = self.memory.recall(packed.canvases)
            self.attention.prepare(batch)
            hidden = self.decoder.forward(batch, self.attention, self.elementwise)
        num_rows = len(packed.logit_rows)
        if not num_rows:
            return None
        if num_rows < hidden.shape[0]:
            hidden = hidden.index_select(0, to_device(packed.logit_rows, pool.device))
        return self.decoder.logits(hidden)
