"""Runs a plan: packs its spans into tensors, maps new pages, one forward of the model, logits by step group."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from engine.batch import BatchPlan, PackedPass, Phase, block_ends
from engine.device.transfer import to_device
from engine.kv_cache.pool import KVCachePool
from engine.models.decoder import Decoder
from engine.runner.kernels import Kernels

if TYPE_CHECKING:
    from engine.gpu.graphs import PassGraphs


class ModelRunner:
    """Owns the model, the KV pool and the kernels. It knows nothing of requests' parameters."""

    graphs: PassGraphs | None = None
    """Captured passes, where there are any; those that fit none run operation by operation."""

    def __init__(self, decoder: Decoder, pool: KVCachePool, kernels: Kernels, device: torch.device) -> None:
        self.decoder = decoder
        self.pool = pool
        self.attention = kernels.attention
        self.elementwise = kernels.elementwise
        self.device = device

    @torch.inference_mode()
    def forward(self, plan: BatchPlan) -> list[torch.Tensor | None]:
        """One packed pass. Returns for each group its logits [n, num_logits, V] of the model's dtype, or None if it
        needs none.

        K and V of every query token are written to its pages; nothing else changes, so a pass may be repeated.
        """
        self._map_pages(plan)
        packed = self.pack(plan)
        hidden = None if self.graphs is None else self.graphs.forward(packed)
        if hidden is None:
            batch = packed.to(self.device, self.pool.dtype)
            self.attention.prepare(batch)
            hidden = self.decoder.forward(batch, self.attention, self.elementwise)
        num_rows = len(packed.logit_rows)
        if not num_rows:
            return [None] * len(plan.groups)
        if num_rows < hidden.shape[0]:
            hidden = hidden.index_select(0, to_device(packed.logit_rows, self.device))
        return self._split(plan, self.decoder.logits(hidden))

    def pack(self, plan: BatchPlan) -> PackedPass:
        """The plan as arrays. Its pages are mapped."""
        # Python lists over spans, numpy over tokens: a numpy call a span would cost more than the whole of this.
        ids: list[int] = []
        offsets, kv_ends, rows, lengths = [0], [], [], []
        shifts, limits, logit_shifts, logit_counts, drafting = [], [], [], [], []
        num_rows = 0
        blockwise = False
        for span in plan.spans:
            at = offsets[-1]
            ids += span.token_ids
            offsets.append(len(ids))
            lengths.append(len(ids) - at)
            shifts.append(span.start - at)
            limits.append(span.limits.end)
            blockwise |= span.limits.block_length > 1
            rows.append(span.seq.row)
            kv_ends.append(span.kv_end)
            drafting.append(span.phase is Phase.DRAFT)
            logit_shifts.append(at + span.logit_start - num_rows)
            logit_counts.append(span.num_logits)
            num_rows += span.num_logits
        # token ids, positions, kv limits, slots (page-table rows at first)
        packed = np.array((shifts, shifts, limits, rows), dtype=np.int64).repeat(lengths, axis=1)
        packed[0] = ids
        packed[1] += np.arange(len(ids))
        np.maximum(packed[2], packed[1] + 1, out=packed[2])  # every token sees itself
        if blockwise:
            np.maximum(packed[2], block_ends(list(plan.spans), lengths, packed[1]), out=packed[2])
        logit_rows = np.array(logit_shifts, dtype=np.int64).repeat(logit_counts) + np.arange(num_rows)
        size = self.pool.page_size
        page, within = np.divmod(packed[1], size)
        packed[3] = self.pool.host_page_table[packed[3], page] * size + within
        drafts = self.decoder.adapter is not None and any(drafting)
        return PackedPass(
            inputs=packed,
            logit_rows=logit_rows,
            span_offsets=offsets,
            span_rows=rows,
            span_kv_ends=kv_ends,
            drafting=np.repeat(drafting, lengths) if drafts else None,
        )

    def _map_pages(self, plan: BatchPlan) -> None:
        for span in plan.spans:
            seq = span.seq
            if seq.num_mapped < len(seq.pages):
                self.pool.map_pages(seq.row, seq.num_mapped, seq.pages[seq.num_mapped :])
                seq.num_mapped = len(seq.pages)

    def _split(self, plan: BatchPlan, logits: torch.Tensor) -> list[torch.Tensor | None]:
        groups: list[torch.Tensor | None] = []
        at = 0
        for group in plan.groups:
            count = len(group.spans) * group.num_logits
            rows = logits[at : at + count]
            groups.append(rows.view(len(group.spans), group.num_logits, -1) if count else None)
            at += count
        return groups
