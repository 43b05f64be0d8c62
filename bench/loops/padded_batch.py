"""Loops that answer one padded batch with transformers: prompts padded on the left, every pass over all open rows.

Better than transformers' own `generate` in one respect: a row that has finished leaves the batch. n rows, kv cached
positions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.loops.one_request import refine
from bench.loops.transformers_model import Cache, Limits, TransformersModel


class PaddedBatch:
    """Left-padded prompts after their prefill: the cache, which of its positions are real, and the answers so far."""

    def __init__(self, model: TransformersModel, prompts: list[list[int]], limits: Limits) -> None:
        self.model, self.limits = model, limits
        longest, pad = max(map(len, prompts)), prompts[0][0]
        self.cache: Cache = model.new_cache()
        ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts], device=model.device)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
        self.real = (torch.arange(longest, device=model.device) >= longest - lengths[:, None]).long()
        """[n, kv] int64: 0 where a row's cache holds padding or rejected drafts."""
        self.next = lengths
        """[n] int64: position of each row's next token to be cached."""
        self.rows = list(range(len(prompts)))
        """By row: the index of the prompt that it answers."""
        self.answers: list[list[int]] = [[] for _ in prompts]
        """By prompt: the tokens of its answer so far."""
        positions = (self.real.cumsum(dim=1) - 1).clamp(min=0)
        logits = model.causal(ids, self.cache, keep=1, mask=self.real, positions=positions)
        self.seeds = logits.argmax(dim=-1)
        """[n, 1]: of each row the last token, whose KV is not yet written."""
        self.settle(self.seeds)

    def settle(self, tokens: torch.Tensor, counts: list[int] | None = None) -> None:
        """Appends tokens [n, q], or of each row the first `counts`, to the answers; rows that have ended leave."""
        for i, (row, new) in enumerate(zip(self.rows, tokens.tolist(), strict=True)):
            new = new if counts is None else new[: counts[i]]
            self.answers[row] = self.model.cut(self.answers[row] + new, self.limits)
        going = [i for i, row in enumerate(self.rows) if not self.model.ends(self.answers[row], self.limits)]
        if len(going) < len(self.rows):
            self.rows = [self.rows[i] for i in going]
            index = torch.tensor(going, dtype=torch.int64, device=self.model.device)
            self.cache.batch_select_indices(index)
            self.real, self.next, self.seeds = self.real[index], self.next[index], self.seeds[index]

    @property
    def remaining(self) -> int:
        """Most tokens that a row may still get."""
        return max(self.limits.max_tokens - len(self.answers[row]) for row in self.rows)

    def open_block(self, length: int) -> torch.Tensor:
        """[n, length]: every row's seed, then masks."""
        masks = self.seeds.new_full((len(self.rows), length - 1), self.model.info.mask_token_id)
        return torch.cat((self.seeds, masks), dim=1)

    def canvas(self, ids: torch.Tensor, drafting: bool = False) -> torch.Tensor:
        """Logits [n, q, V] of canvases [n, q] after the real positions of each row."""
        real = torch.cat((self.real, torch.ones_like(ids)), dim=1)
        visible = torch.zeros(real.shape, dtype=self.model.dtype, device=ids.device)
        visible = visible.masked_fill_(real == 0, float("-inf"))[:, None, None, :]
        return self.model.canvas(ids, self.cache, drafting, visible, self._positions(ids))

    def causal(self, ids: torch.Tensor, keep: int = 0) -> torch.Tensor:
        """Logits [n, keep or q, V] of ids [n, q], which are cached."""
        self.real = torch.cat((self.real, torch.ones_like(ids)), dim=1)
        logits = self.model.causal(ids, self.cache, keep, self.real, self._positions(ids))
        self.next = self.next + ids.shape[1]
        return logits

    def keep(self, accepted: torch.Tensor, width: int) -> None:
        """Keeps the first `accepted` [n] of the last `width` cached positions of each row, not the others."""
        kept = int(accepted.max())
        self.cache.crop(kept - width)
        own = (torch.arange(kept, device=accepted.device) < accepted[:, None]).long()
        self.real = torch.cat((self.real[:, :-width], own), dim=1)
        self.next = self.next - width + accepted

    def _positions(self, ids: torch.Tensor) -> torch.Tensor:
        return self.next[:, None] + torch.arange(ids.shape[1], device=ids.device)


@torch.inference_mode()
def autoregressive(model: TransformersModel, prompts: list[list[int]], limits: Limits) -> list[list[int]]:
    """One token a pass and row."""
    batch = PaddedBatch(model, prompts, limits)
    while batch.rows:
        batch.seeds = batch.causal(batch.seeds, keep=1).argmax(dim=-1)
        batch.settle(batch.seeds)
    return batch.answers


@torch.inference_mode()
def diffusion(model: TransformersModel, prompts: list[list[int]], limits: Limits) -> list[list[int]]:
    """Block diffusion: a block is refined until no row has a mask left, then encoded for all rows that go on."""
    batch = PaddedBatch(model, prompts, limits)
    ends = torch.tensor(model.info.end_token_ids, device=model.device)
    while batch.rows:
        block = batch.open_block(min(limits.block_length, batch.remaining + 1))
        masked = block == model.info.mask_token_id
        masked[:, 0] = False
        while bool(masked.any()):
            block, masked = refine(batch.canvas(block), block, masked, limits.threshold)
            # Nothing after an end token with no mask to its left is needed.
            settled = masked.long().cumsum(dim=1) == 0
            over = (settled & torch.isin(block, ends))[:, 1:].any(dim=1)
            masked &= ~over[:, None]
        before = batch.rows
        batch.settle(block[:, 1:])
        if batch.rows:
            going = [i for i, row in enumerate(before) if row in batch.rows]
            batch.seeds = batch.causal(block[going], keep=1).argmax(dim=-1)
            batch.settle(batch.seeds)
    return batch.answers


@torch.inference_mode()
def speculative(model: TransformersModel, prompts: list[list[int]], limits: Limits) -> list[list[int]]:
    """Linear self-speculation: rows accept different lengths; what a row rejects stays in the cache, masked."""
    batch = PaddedBatch(model, prompts, limits)
    while batch.rows:
        width = min(limits.block_length, batch.remaining)
        block = batch.open_block(width)
        if width > 1:
            block[:, 1:] = batch.canvas(block, drafting=True)[:, 1:].argmax(dim=-1)
        verified = batch.causal(block).argmax(dim=-1)
        accepted = 1 + (block[:, 1:] == verified[:, :-1]).long().cumprod(dim=1).sum(dim=1)
        batch.keep(accepted, width)
        batch.seeds = verified.gather(1, accepted[:, None] - 1)
        batch.settle(verified, accepted.tolist())
    return batch.answers


BatchLoop = Callable[[TransformersModel, list[list[int]], Limits], list[list[int]]]

BATCH_LOOPS: dict[str, BatchLoop] = {"ar": autoregressive, "diffusion": diffusion, "speculative": speculative}
"""By the engine's name of the mode."""
