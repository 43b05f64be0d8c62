"""A dense AttentionBackend written for the tests: plain K and V rows a sequence, one masked softmax a span."""

from __future__ import annotations

import numpy as np
import torch

from engine.attention.base import AttentionBackend
from engine.attention.packed_pass import ForwardBatch


class DenseAttention(AttentionBackend):
    """Keeps K and V of every sequence (a `span_row` of the batch) by position; ignores pages and slots."""

    def __init__(self, num_layers: int, max_positions: int) -> None:
        self.num_layers = num_layers
        self.max_positions = max_positions
        self.cache: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self.batch: ForwardBatch | None = None

    def prepare(self, batch: ForwardBatch) -> None:
        self.batch = batch

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int) -> torch.Tensor:
        assert self.batch is not None
        batch = self.batch
        spans = [
            (row, slice(batch.span_offsets[span], batch.span_offsets[span + 1]))
            for span, row in enumerate(batch.span_rows)
        ]
        for row, tokens in spans:  # all of the pass's K and V are written before anything is read
            keys, values = self._rows(layer, row, k)
            keys[batch.positions[tokens]] = k[tokens]
            values[batch.positions[tokens]] = v[tokens]
        outputs = []
        for row, tokens in spans:
            keys, values = self._rows(layer, row, k)
            outputs.append(attend(q[tokens], keys, values, batch.kv_limits[tokens]))
        return torch.cat(outputs)

    def _rows(self, layer: int, row: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if (layer, row) not in self.cache:
            shape = (self.max_positions, *like.shape[1:])
            self.cache[layer, row] = (like.new_zeros(shape), like.new_zeros(shape))
        return self.cache[layer, row]


def attend(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, kv_limits: torch.Tensor) -> torch.Tensor:
    """q: [T, heads, d]; keys, values: [P, kv_heads, d]; token t sees [0, kv_limits[t]). Returns [T, heads, d]."""
    group = q.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    scores = torch.einsum("thd,phd->htp", q, keys) * q.shape[-1] ** -0.5
    hidden = torch.arange(keys.shape[0], device=q.device) >= kv_limits[:, None]  # [T, P]
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("htp,phd->thd", weights, values)


def dense_batch(spans: list[tuple[int, int, list[int], int | None]]) -> ForwardBatch:
    """Packs (sequence row, start, token ids, kv_limit or None for causal) into a batch that asks for every logit."""
    ids: list[int] = []
    positions: list[int] = []
    limits: list[int] = []
    offsets = [0]
    for _, start, tokens, limit in spans:
        places = range(start, start + len(tokens))
        ids += tokens
        positions += places
        limits += [place + 1 if limit is None else limit for place in places]
        offsets.append(len(ids))
    return ForwardBatch(
        token_ids=torch.tensor(ids),
        positions=torch.tensor(positions),
        kv_limits=torch.tensor(limits),
        slots=torch.tensor(positions),
        span_offsets=offsets,
        span_rows=[row for row, *_ in spans],
        span_kv_ends=[start + len(tokens) if limit is None else limit for _, start, tokens, limit in spans],
        host_kv_limits=np.array(limits),
    )
