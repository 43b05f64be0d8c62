"""Runs a plan: packs its spans into tensors, maps new pages, one forward of the model, logits by step group."""

from __future__ import annotations

import numpy as np
import torch

from engine.attention.base import AttentionBackend
from engine.batch import BatchPlan, ForwardBatch, Phase
from engine.kv_cache.pool import KVCachePool
from engine.models.decoder import Decoder


class ModelRunner:
    """Owns the model, the KV pool and the attention backend. It knows nothing of requests' parameters."""

    def __init__(self, decoder: Decoder, pool: KVCachePool, attention: AttentionBackend, device: torch.device) -> None:
        self.decoder = decoder
        self.pool = pool
        self.attention = attention
        self.device = device

    @torch.inference_mode()
    def forward(self, plan: BatchPlan) -> list[torch.Tensor | None]:
        """One packed pass. Returns for each group its logits [n, num_logits, V], or None if it needs none.

        K and V of every query token are written to its pages; nothing else changes, so a pass may be repeated.
        """
        self._map_pages(plan)
        batch = self.pack(plan)
        self.attention.prepare(batch)
        hidden = self.decoder.forward(batch, self.attention)
        if not batch.logit_rows.numel():
            return [None] * len(plan.groups)
        if batch.logit_rows.numel() < hidden.shape[0]:
            hidden = hidden.index_select(0, batch.logit_rows)
        return self._split(plan, self.decoder.logits(hidden))

    def pack(self, plan: BatchPlan) -> ForwardBatch:
        """The plan as tensors on the device, in one transfer."""
        # Python lists over spans, numpy over tokens: a numpy call a span would cost more than the whole of this.
        ids: list[int] = []
        offsets, kv_ends, rows, lengths = [0], [], [], []
        shifts, limits, logit_shifts, logit_counts, drafting = [], [], [], [], []
        num_rows = 0
        for span in plan.spans:
            at = offsets[-1]
            ids += span.token_ids
            offsets.append(len(ids))
            lengths.append(len(ids) - at)
            shifts.append(span.start - at)
            limits.append(span.kv_limit or 0)
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
        np.maximum(packed[2], packed[1] + 1, out=packed[2])  # causal spans; no token of any other sees less than itself
        logit_rows = np.array(logit_shifts, dtype=np.int64).repeat(logit_counts) + np.arange(num_rows)
        size = self.pool.page_size
        page, within = np.divmod(packed[1], size)
        packed[3] = self.pool.host_page_table[packed[3], page] * size + within
        device = self.device
        token_ids, positions, kv_limits, slots = torch.from_numpy(packed).to(device).unbind(0)
        draft_tokens = None
        if self.decoder.adapter is not None and any(drafting):
            draft_tokens = torch.from_numpy(np.repeat(drafting, lengths)).to(device, self.pool.dtype)[:, None]
        return ForwardBatch(
            token_ids=token_ids,
            positions=positions,
            kv_limits=kv_limits,
            slots=slots,
            logit_rows=torch.from_numpy(logit_rows).to(device),
            span_offsets=offsets,
            span_rows=rows,
            span_kv_ends=kv_ends,
            host_kv_limits=packed[2],
            draft_tokens=draft_tokens,
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
