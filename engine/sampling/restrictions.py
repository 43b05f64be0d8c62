"""Restrictions of a request: the only tokens that its answer may hold, and sequences of tokens that it never holds."""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch

from engine.device.transfer import to_device
from engine.sampling.filters import NEGATIVE_INFINITY
from engine.sequence import Sequence


def apply_restrictions(logits: torch.Tensor, seqs: Rows[Sequence], draft_tokens: Rows[Rows[int]] | None) -> None:
    """Bars, in place, the tokens that `allowed_token_ids` leaves out and those that would complete a banned sequence.

    logits: [n, r, V]. draft_tokens: for each span the r - 1 tokens between its rows; row i follows the first i of them.
    None: what stands before a row is not known, and only the allowed tokens count.
    """
    _allow_only(logits, seqs)
    if draft_tokens is not None:
        entries = banned_next(seqs, draft_tokens)
        if entries:
            spans, rows, tokens = to_device(entries, logits.device).unbind(dim=1)
            logits[spans, rows, tokens] = NEGATIVE_INFINITY


def _allow_only(logits: torch.Tensor, seqs: Rows[Sequence]) -> None:
    for i, seq in enumerate(seqs):
        allowed = seq.request.sampling.allowed_token_ids
        if allowed is not None:
            index = to_device(allowed, logits.device)
            kept = logits[i, :, index]
            logits[i] = NEGATIVE_INFINITY
            logits[i, :, index] = kept


def banned_next(seqs: Rows[Sequence], draft_tokens: Rows[Rows[int]]) -> list[tuple[int, int, int]]:
    """(span, row, token) of every token that would complete a banned sequence. Only the answer counts, no prompt."""
    entries = []
    for i, (seq, drafts) in enumerate(zip(seqs, draft_tokens, strict=True)):
        banned = seq.request.sampling.banned_sequences
        if not banned:
            continue
        reach = max(map(len, banned)) - 1  # tokens before a row that matter
        start = max(seq.num_prompt, len(seq.token_ids) - reach)
        before = [*seq.token_ids[start:], *drafts]
        settled = len(before) - len(drafts)
        for row in range(len(drafts) + 1):
            end = settled + row
            for *first, last in banned:
                if len(first) <= end and before[end - len(first) : end] == first:
                    entries.append((i, row, last))
    return entries
