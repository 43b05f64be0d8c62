"""Blocks of diffusion under a grammar: what settles, and what becomes a mask again.

Settled tokens are always the beginning of a text of the grammar. The first masked position follows them alone, so its
choice is bound by the grammar, and settles in every step: that is why an answer comes to its end. A token unmasked
further right is a draft: once the settled tokens reach it, the grammar accepts it, or it becomes a mask again with all
that was drafted behind it (the text there has shifted). A position that the settled tokens reach in a step takes what
that step found likeliest among the allowed tokens, if this is confident enough or the only one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from engine.decoding.results import Choices, HostChoices
from engine.device.transfer import to_device
from engine.events import TokenLogprob
from engine.grammar.state import GrammarState, is_allowed, only_token
from engine.request import GREEDY_BELOW
from engine.sampling.chosen import Chosen
from engine.sampling.sampler import Sampler
from engine.sequence import Block, Candidates, Sequence

CANDIDATES = 16
"""Tokens looked at, best first, where the settled tokens reach a position that holds none, or a refused one."""


def bound_row(seq: Sequence, block: Block, first: int) -> int | None:
    """The row of logits whose choice the sequence's grammar binds in the next step: that of the first masked position.

    first: position in the block that the first row chooses a token for. None without a grammar, and where a shared pass
    refines the block before, or just as, its anchor becomes known: the grammar's state before a masked position is not
    known then.
    """
    if seq.grammar is None or block.awaits_anchor or len(seq.token_ids) < block.start + block.num_settled:
        return None
    return block.masked.index(True) - first


def add_candidates(
    choices: Choices, sampler: Sampler, chosen: Chosen, seqs: Rows[Sequence], positions: torch.Tensor
) -> None:
    """Adds the likeliest choices at every position of the blocks that are under a grammar. positions: [n, r]."""
    bound = [i for i, seq in enumerate(seqs) if seq.grammar is not None]
    if not bound:
        return
    device = positions.device
    index = to_device(bound, device)
    choices.candidate_ids, choices.candidate_logprobs = sampler.rank(
        chosen.logits[index], [seqs[i] for i in bound], positions[index], CANDIDATES, keep_filtered=False
    )
    row_of = {i: row for row, i in enumerate(bound)}
    choices.candidate_rows = to_device([row_of.get(i, -1) for i in range(len(seqs))], device)


@dataclass(slots=True)
class BoundBlock:
    """A block in a step under a grammar."""

    seq: Sequence
    grammar: GrammarState
    block: Block
    first: int
    """Position in the block that the first row of the step's logits is for."""
    row: int | None
    """What `bound_row` gave before the step."""
    was_masked: list[bool]
    """By position, before the step."""
    candidates: Candidates
    """Of every row, from the step."""

    @classmethod
    def of(cls, seq: Sequence, block: Block, first: int, choices: HostChoices, i: int) -> BoundBlock | None:
        """The block of span i, before its choices are written into it; None without a grammar. first: see the field."""
        if seq.grammar is None:
            return None
        at = choices.candidate_rows[i]
        candidates = Candidates(choices.candidate_ids[at], choices.candidate_logprobs[at])
        return cls(seq, seq.grammar, block, first, bound_row(seq, block, first), list(block.masked), candidates)

    @property
    def known(self) -> int:
        """Leading tokens that the sequence holds. An anchor that this very pass chose is not among them yet."""
        return len(self.seq.token_ids) - self.block.start

    def is_exhausted(self, tokens: list[int]) -> bool:
        """Whether the grammar leaves nothing to choose behind the settled tokens. tokens: chosen in the step."""
        return self.row is not None and tokens[self.row] < 0

    def settle(self) -> int:
        """Keeps what the grammar accepts, and masks the rest again. Returns how many tokens have settled."""
        seq, block = self.seq, self.block
        drafts = [None if masked else token for token, masked in zip(block.token_ids, block.masked, strict=True)]
        first_end = seq.num_prompt + seq.request.sampling.min_tokens - len(seq.token_ids)
        extended = self.grammar.extend(seq.token_ids, drafts[self.known :], self._pick, first_end)
        settled = max(self.known + len(extended), block.num_settled)
        if self.row is not None:  # its mask allowed the token: if the library gives up on it, the next step says so
            settled = max(settled, self.first + self.row + 1)
        if settled < len(block) and not block.masked[settled]:
            for j in range(settled, len(block)):
                block.masked[j], block.confidences[j] = True, None
                block.logprobs.pop(j, None)
        return settled

    def _pick(self, index: int, mask: NDArray[np.uint8]) -> int | None:
        """Puts a token among those allowed at a position, the one `index` behind the known ones."""
        j = self.known + index
        only = only_token(mask)
        if only is not None:
            self._place(j, [(only, 0.0)])
            return only
        threshold = self.seq.request.decoding.threshold
        row = j - self.first
        if threshold is None or not self.was_masked[j] or not 0 <= row < len(self.candidates.token_ids):
            return None
        shares = self._shares(row, mask)
        if not shares or math.exp(shares[0][1]) < threshold:
            return None
        self._place(j, shares)
        return shares[0][0]

    def _shares(self, row: int, mask: NDArray[np.uint8]) -> list[tuple[int, float]]:
        """The allowed candidates of a row, best first, with log-probabilities once the refused ones are out."""
        pairs = list(zip(self.candidates.token_ids[row], self.candidates.logprobs[row], strict=True))
        if self.seq.request.sampling.temperature < GREEDY_BELOW:
            pairs.sort(key=lambda pair: (-pair[1], pair[0]))  # equals come in any order
        refused = math.fsum(math.exp(logprob) for token, logprob in pairs if not is_allowed(mask, token))
        if refused >= 1.0:
            return []
        scale = math.log1p(-refused)
        return [
            (token, min(0.0, logprob - scale))
            for token, logprob in pairs
            if is_allowed(mask, token) and logprob > -math.inf
        ]

    def _place(self, j: int, shares: list[tuple[int, float]]) -> None:
        token, logprob = shares[0]
        block, wanted = self.block, self.seq.request.sampling.logprobs
        block.token_ids[j], block.masked[j], block.confidences[j] = token, False, math.exp(logprob)
        if wanted is not None:
            likeliest = sorted(shares, key=lambda share: -share[1])
            block.logprobs[j] = TokenLogprob(token, logprob, likeliest[:wanted])
