"""TokenHistory: the tokens that each penalised sequence has seen, as device tensors."""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch

from engine.device.transfer import to_device
from engine.sequence import Sequence


class TokenHistory:
    """Counts of generated tokens and presence of prompt tokens, a row a running sequence, kept up incrementally.

    A row belongs to the request that last used it: a sequence that is preempted and comes back in another row, or a
    new sequence in an old row, starts over. Memory is taken when the first penalised request comes.
    """

    def __init__(self, max_rows: int, vocab_size: int, device: torch.device) -> None:
        self._shape = (max_rows, vocab_size)
        self._device = device
        self._generated: torch.Tensor | None = None
        self._prompt: torch.Tensor | None = None
        self._owners: list[Sequence | None] = [None] * max_rows
        self._counted = [0] * max_rows

    def counts(self, seqs: Rows[Sequence]) -> tuple[torch.Tensor, torch.Tensor]:
        """([k, V] int32 counts of settled generated tokens, [k, V] bool presence in the prompt) of k running ones."""
        if self._generated is None or self._prompt is None:
            self._generated = torch.zeros(self._shape, dtype=torch.int32, device=self._device)
            self._prompt = torch.zeros(self._shape, dtype=torch.bool, device=self._device)
        rows: list[int] = []
        tokens: list[int] = []
        for seq in seqs:
            if self._owners[seq.row] is not seq:
                self._adopt(seq, self._generated, self._prompt)
            new = seq.token_ids[self._counted[seq.row] :]
            rows += [seq.row] * len(new)
            tokens += new
            self._counted[seq.row] = len(seq.token_ids)
        if rows:
            ones = torch.ones(len(rows), dtype=torch.int32, device=self._device)
            where = (to_device(rows, self._device), to_device(tokens, self._device))
            self._generated.index_put_(where, ones, accumulate=True)
        index = to_device([seq.row for seq in seqs], self._device)
        return self._generated[index], self._prompt[index]

    def _adopt(self, seq: Sequence, generated: torch.Tensor, prompt: torch.Tensor) -> None:
        generated[seq.row] = 0
        prompt[seq.row] = False
        prompt[seq.row, to_device(seq.request.prompt_token_ids, self._device)] = True
        self._owners[seq.row] = seq
        self._counted[seq.row] = seq.num_prompt


def unsettled_counts(tokens: torch.Tensor, vocab_size: int, cumulative: bool, without_own: bool) -> torch.Tensor:
    """How often each token occurs among the visible ones. tokens: [k, r], -1 for none. Returns [k, r or 1, V] int."""
    k, r = tokens.shape
    one_hot = torch.zeros(k, r, vocab_size, dtype=torch.int32, device=tokens.device)
    one_hot.scatter_(-1, tokens.clamp(min=0)[..., None], (tokens >= 0).to(torch.int32)[..., None])
    if cumulative:
        return one_hot.cumsum(dim=1, dtype=torch.int32)
    counts = one_hot.sum(dim=1, keepdim=True, dtype=torch.int32)
    return counts - one_hot if without_own else counts
