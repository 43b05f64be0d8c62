"""TritonChoice: chooses tokens on a GPU by kernels that read a row of logits once or twice.

They write nothing of the row's size. Only top_k and top_p read it some twenty times (twice as often in float32), where
the alternative is to sort it.

Needs Triton: imported only where it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows

import numpy as np
import torch
import triton

from engine.device.transfer import to_device
from engine.gpu.choice_kernels import choose_rows, find_cuts
from engine.request import GREEDY_BELOW, SamplingParams
from engine.sampling.picker import Picked, TokenPicker

MAX_BLOCK = 4096
"""Logits that a program reads at a time."""
NUM_WARPS = 8
KEY_SHIFTS = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}
"""Low bits of a float32 that say nothing about a value which came from the type."""


class TritonChoice(TokenPicker):
    """Does the work of `sample` and `best_tokens` of engine.sampling.filters in one or two launches a group."""

    def __init__(self, banned_token_ids: tuple[int, ...], device: torch.device) -> None:
        self._banned = torch.tensor(banned_token_ids, dtype=torch.int64, device=device)
        self._nothing = torch.zeros(1, dtype=torch.int64, device=device)

    def warm_up(self, dtype: torch.dtype, vocab_size: int) -> None:
        """Compiles every variant: a compilation while requests are served would hold them all up."""
        device = self._banned.device
        for variant in {dtype, torch.float32}:
            logits = torch.zeros((1, 1, vocab_size), dtype=variant, device=device)
            for params in (SamplingParams(temperature=0.0), SamplingParams(), SamplingParams(top_k=2)):
                self.pick(logits, [params], torch.zeros((1, 1), dtype=torch.int64, device=device))

    def pick(self, logits: torch.Tensor, params: Rows[SamplingParams], positions: torch.Tensor | None) -> Picked:
        """See TokenPicker. Half types are computed in float32. Raises ValueError for rows that are not contiguous, and
        for sampled tokens without positions."""
        if not logits.is_contiguous():
            raise ValueError("the rows of logits must lie one after another")
        device = logits.device
        n, r, vocab_size = logits.shape
        token_ids = torch.empty((n, r), dtype=torch.int64, device=device)
        logprobs = torch.empty((n, r), dtype=torch.float32, device=device)
        finite = torch.empty((n, r), dtype=torch.int8, device=device)
        sampled = any(p.temperature >= GREEDY_BELOW for p in params)
        cut = sampled and any(p.top_k > 0 or p.top_p < 1 for p in params)
        table = cuts = self._nothing
        if sampled:
            if positions is None:
                raise ValueError("positions are needed: the noise of a sampled token depends on them")
            table = to_device(_table(params, vocab_size), device)
        block = min(MAX_BLOCK, triton.next_power_of_2(vocab_size))
        sizes = {"V": vocab_size, "BLOCK": block, "NUM_BANNED": len(self._banned), "num_warps": NUM_WARPS}
        if cut:
            cuts = torch.empty((n * r, 2), dtype=torch.int32, device=device)
            find_cuts[(n * r,)](
                logits, cuts, table, self._banned, r, ID_BITS=vocab_size.bit_length(),
                KEY_SHIFT=KEY_SHIFTS[logits.dtype], **sizes,
            )  # fmt: skip
        places = self._nothing if positions is None else positions
        choose_rows[(n * r,)](
            logits, token_ids, logprobs, finite, table, places, cuts, self._banned, r, SAMPLED=sampled, CUT=cut,
            KEY_SHIFT=KEY_SHIFTS[logits.dtype], **sizes,
        )  # fmt: skip
        return Picked(token_ids, logprobs, finite.all(dim=1))


def _table(params: Rows[SamplingParams], vocab_size: int) -> np.ndarray:
    """[n, 6] int32, see choose_rows."""
    table = np.empty((len(params), 6), dtype=np.int32)
    seeds = np.array([p.seed for p in params], dtype=np.int64)
    table[:, 0], table[:, 1] = (seeds & 0xFFFFFFFF).astype(np.uint32).view(np.int32), seeds >> 32
    floats = np.array(
        [
            (
                p.temperature if p.temperature >= GREEDY_BELOW else 0.0,
                math.log(p.min_p) if p.min_p > 0 else -math.inf,
                p.top_p,
            )
            for p in params
        ],
        dtype=np.float32,
    )
    table[:, (2, 3, 5)] = floats.view(np.int32)
    table[:, 4] = [min(p.top_k, vocab_size) for p in params]
    return table
