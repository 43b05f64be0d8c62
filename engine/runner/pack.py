"""The host's part of a pass: packs a plan's spans into plain arrays, and says what changed in the page table."""

from __future__ import annotations

import numpy as np

from engine.attention.packed_pass import MappedPages, PackedCanvases, PackedPass
from engine.batch import BatchPlan, Phase, block_ends, canvas_slot


class Packer:
    """Turns plans into PackedPasses. It keeps its own copy of the page table, apart from model and device."""

    def __init__(self, page_size: int, table_shape: tuple[int, int], has_adapter: bool, canvas_length: int = 0) -> None:
        """table_shape: rows of the page table, and pages of each. has_adapter: the model drafts with an adapter.
        canvas_length: of canvases of random tokens; 0: the model has none."""
        self._page_size = page_size
        self._has_adapter = has_adapter
        self._canvas_length = canvas_length
        self._page_table = np.zeros(table_shape, dtype=np.int64)
        self._mapped: list[MappedPages] = []
        self._cleared: list[int] = []

    def clear(self, pages: list[int]) -> None:
        """Makes the next pass zero these pages before it begins."""
        self._cleared += pages

    def pack(self, plan: BatchPlan) -> PackedPass:
        """The plan as arrays, with every change of pages since the last pass."""
        self._map_pages(plan)
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
        page, within = np.divmod(packed[1], self._page_size)
        packed[3] = self._page_table[packed[3], page] * self._page_size + within
        # Taken at the end: what a plan that could not be packed has changed goes with the next one.
        mapped, self._mapped = self._mapped, []
        cleared, self._cleared = self._cleared, []
        return PackedPass(
            inputs=packed,
            logit_rows=logit_rows,
            span_offsets=offsets,
            span_rows=rows,
            span_kv_ends=kv_ends,
            drafting=np.repeat(drafting, lengths) if self._has_adapter and any(drafting) else None,
            only_drafts=all(drafting),
            mapped_pages=mapped,
            cleared_pages=cleared,
            canvases=pack_canvases(plan, offsets, packed[1], self._canvas_length) if self._canvas_length else None,
        )

    def _map_pages(self, plan: BatchPlan) -> None:
        for span in plan.spans:
            seq = span.seq
            if seq.num_mapped < len(seq.pages):
                change = MappedPages(seq.row, seq.num_mapped, seq.pages[seq.num_mapped :])
                self._page_table[change.row, change.first : change.first + len(change.pages)] = change.pages
                self._mapped.append(change)
                seq.num_mapped = len(seq.pages)


def pack_canvases(plan: BatchPlan, offsets: list[int], positions: np.ndarray, length: int) -> PackedCanvases:
    """The canvases of a plan. offsets: of its spans; positions: [T], of its tokens; length: of a canvas."""
    origins = positions.copy()
    rows, places = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for span, at, end in zip(plan.spans, offsets, offsets[1:], strict=False):
        if span.step >= 0:
            origins[at:end] = span.start
            rows.append(np.arange(at, end))
            first = 1 + canvas_slot(span.seq.row, span.step) * length
            places.append(np.arange(first, first + end - at) if span.step else np.zeros(end - at, dtype=np.int64))
    return PackedCanvases(np.concatenate(rows), np.concatenate(places), origins)
