"""A pass as arrays: on the host, as packed from a plan, and on the device, as the decoder and its attention read it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from engine.device.transfer import to_device


class MappedPages(NamedTuple):
    """New entries of the page table: page_table[row, first : first + len(pages)] = pages."""

    row: int
    first: int
    pages: list[int]


class PackedCanvases(NamedTuple):
    """The canvases of random tokens in a pass, on the host: C tokens of T."""

    rows: np.ndarray
    """[C] int64: indices into T."""
    places: np.ndarray
    """[C] int64: where the device keeps what the last step made of each token; 0: there has been no step."""
    origins: np.ndarray
    """[T] int64: the position that a token's window of attention is counted from: its own, or its canvas's first."""


@dataclass(slots=True, eq=False)
class PackedPass:
    """A pass as plain arrays on the host: all that a rank needs to run it. T query tokens, S spans, R logit rows."""

    inputs: np.ndarray
    """[4, T] int64: token ids, positions, kv limits, slots; see ForwardBatch."""
    logit_rows: np.ndarray
    """[R] int64: indices into T."""
    span_offsets: list[int]
    """S + 1 offsets into T."""
    span_rows: list[int]
    """S page-table rows."""
    span_kv_ends: list[int]
    """S: most KV positions any token of the span sees."""
    drafting: np.ndarray | None
    """[T] bool: where a draft adapter applies. None: nowhere."""
    only_drafts: bool = False
    """Whether every token drafts: what it computes is verified later, by another pass."""
    mapped_pages: list[MappedPages] = field(default_factory=list)
    """Entries of the page table that have changed since the last pass."""
    cleared_pages: list[int] = field(default_factory=list)
    """Pages to be zeroed before the pass, so that non-finite values in them cannot reach their next owner."""
    canvases: PackedCanvases | None = None
    """None: the model has no canvases of random tokens."""

    def to(self, device: torch.device, dtype: torch.dtype) -> ForwardBatch:
        """The tensors on the device, in one transfer (two where a draft adapter applies). dtype: the model's."""
        token_ids, positions, kv_limits, slots = to_device(self.inputs, device).unbind(0)
        draft_tokens = None
        if self.drafting is not None:
            draft_tokens = to_device(self.drafting, device).to(dtype)[:, None]
        return ForwardBatch(
            token_ids=token_ids,
            positions=positions,
            kv_limits=kv_limits,
            slots=slots,
            span_offsets=self.span_offsets,
            span_rows=self.span_rows,
            span_kv_ends=self.span_kv_ends,
            host_kv_limits=self.inputs[2],
            draft_tokens=draft_tokens,
            only_drafts=self.only_drafts,
            host_origins=None if self.canvases is None else self.canvases.origins,
        )


class CanvasInput(NamedTuple):
    """The tokens of a pass that belong to canvases of random tokens, on the device: C of T."""

    rows: torch.Tensor
    """[C] int64: indices into T."""
    soft: torch.Tensor
    """[C, hidden_size]: the embedding that the last step expected there; zeros: there has been no step."""


@dataclass(slots=True, eq=False)
class ForwardBatch:
    """A pass as packed tensors on the device, for the decoder and its attention. T query tokens, S spans."""

    token_ids: torch.Tensor
    """[T] int64"""
    positions: torch.Tensor
    """[T] int64, absolute"""
    kv_limits: torch.Tensor
    """[T] int64: the token sees KV positions [0, kv_limit) of its own sequence."""
    slots: torch.Tensor
    """[T] int64: the place in the flat KV pool for each token's K and V."""
    span_offsets: list[int]
    """S + 1 offsets into T."""
    span_rows: list[int]
    """S page-table rows."""
    span_kv_ends: list[int]
    """S: most KV positions any token of the span sees."""
    host_kv_limits: np.ndarray
    """[T] int64: kv_limits on the host."""
    draft_tokens: torch.Tensor | None = None
    """[T, 1] of the model's dtype: 1 where a draft adapter applies, 0 elsewhere. None: nowhere."""
    only_drafts: bool = False
    """See PackedPass."""
    host_origins: np.ndarray | None = None
    """[T] int64, see PackedCanvases. None: no layer attends by windows."""
    canvas: CanvasInput | None = None
    """None: the pass has no canvas of random tokens."""
