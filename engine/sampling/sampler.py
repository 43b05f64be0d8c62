"""Sampler: from a step group's logits to tokens. Bans, grammars, bias, penalties, temperature, filters and noise.

The order is the same in every decoding mode: logit_bias, barred tokens (min_tokens, ignore_eos, bad_words), penalties,
restrictions (allowed_token_ids, bad_words of several tokens), grammar, banned ids, temperature, top_k, top_p, min_p,
noise. Grammar and bans come after the other edits, so that none of these can undo them. Shapes: n spans of a group,
r logit rows each, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch

from engine.device.transfer import to_device
from engine.grammar.state import GrammarState, token_masks
from engine.request import GREEDY_BELOW
from engine.sampling.chosen import Chosen
from engine.sampling.divided import DividedLogits, Logits, plain_choice
from engine.sampling.filters import NEGATIVE_INFINITY, best_tokens, noisy_scores, sample
from engine.sampling.history import TokenHistory, unsettled_counts
from engine.sampling.logprobs import all_finite, widened
from engine.sampling.picker import TokenPicker
from engine.sampling.restrictions import apply_restrictions
from engine.sequence import Sequence


class Sampler:
    """Applies requests' sampling parameters. Holds only what all requests share: banned ids and token histories."""

    def __init__(
        self,
        banned_token_ids: tuple[int, ...],
        history: TokenHistory,
        device: torch.device,
        kernel: TokenPicker | None = None,
    ) -> None:
        """kernel: does the last step, from edited logits to tokens. None: torch's operations do."""
        self._banned = torch.tensor(banned_token_ids, dtype=torch.int64, device=device)
        self._bits = torch.tensor([1 << i for i in range(8)], dtype=torch.uint8, device=device)
        self._history = history
        self._device = device
        self._kernel = kernel

    def choose(
        self,
        logits: Logits,
        seqs: Rows[Sequence],
        positions: torch.Tensor | None,
        *,
        unsettled: torch.Tensor | None = None,
        cumulative: bool = False,
        without_own: bool = False,
        draft_tokens: Rows[Rows[int]] | None = None,
        grammar_rows: Rows[int | None] | None = None,
    ) -> Chosen:
        """Chooses a token at every row.

        logits: [n, r, V] raw; overwritten. positions: [n, r] int64, absolute, of the tokens being chosen; None only if
        every sequence is plain. unsettled: [n, r] int64, tokens of the open block that count as history, -1 where none;
        every row sees all of them (denoising), or, `cumulative`, row i sees unsettled[: i + 1] (verification), or,
        `without_own`, all but the one at its own place (editing).
        draft_tokens: for each span the r - 1 tokens between its rows; row i is bound by the grammar's state after the
        first i of them. None: grammars bind the rows that `grammar_rows` names; the rest of the result is a draft.
        grammar_rows: for each span the one row that follows its settled tokens; None: no such row, or no grammar.
        """
        plain = _are_plain(seqs, positions)
        bound = [] if plain else _bound(seqs, draft_tokens, grammar_rows)
        barred = any(seq.barred_token_ids for seq in seqs)
        edited = bool(bound) or (not plain and any(seq.request.sampling.edits for seq in seqs))
        if isinstance(logits, DividedLogits):
            choice = None if bound else plain_choice(seqs)
            if choice is not None:
                return Chosen.of(logits, logits.pick(choice, positions))
            logits = logits.whole()
        finite = None
        if edited or barred or self._kernel is None:
            finite, logits = all_finite(logits), widened(logits)
        if edited:
            self._apply_bias(logits, seqs)
        if barred:
            self._bar(logits, seqs)
        if edited and positions is not None:
            self._bar_ends(logits, seqs, positions)
            self._apply_penalties(logits, seqs, unsettled, cumulative, without_own)
            apply_restrictions(logits, seqs, draft_tokens)
        if bound:
            self._bind(logits, bound, seqs, draft_tokens, grammar_rows)
        if finite is not None:
            logits.index_fill_(-1, self._banned, NEGATIVE_INFINITY)
        chosen = self._pick(logits, finite, seqs, None if plain else positions)
        if bound:
            chosen.token_ids.masked_fill_(_scores_of(chosen, logits) == NEGATIVE_INFINITY, -1)
        return chosen

    def edit(
        self, logits: torch.Tensor, seqs: Rows[Sequence], positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What `choose` does before it chooses, for requests without penalties and grammars: edited logits [n, r, V],
        of float32 at least, and [n] bool: whether they were finite before. logits: raw; overwritten."""
        finite = all_finite(logits)
        logits = widened(logits)
        self._apply_bias(logits, seqs)
        if any(seq.barred_token_ids for seq in seqs):
            self._bar(logits, seqs)
        self._bar_ends(logits, seqs, positions)
        apply_restrictions(logits, seqs, None)
        return logits.index_fill_(-1, self._banned, NEGATIVE_INFINITY), finite

    def _pick(
        self,
        logits: torch.Tensor,
        finite: torch.Tensor | None,
        seqs: Rows[Sequence],
        positions: torch.Tensor | None,
    ) -> Chosen:
        """Temperature, filters, noise and the best token.

        finite: of the logits before anything changed them; None only if nothing has, not even bans, which the kernel
        then applies. positions: None only if nothing is sampled.
        """
        if self._kernel is not None:
            picked = self._kernel.pick(logits, [seq.request.sampling for seq in seqs], positions)
            return Chosen(picked.token_ids, picked.finite if finite is None else finite, logits, picked.logprobs)
        if finite is None:
            raise ValueError("only the kernel tells whether logits are finite")
        if positions is None:
            return Chosen(best_tokens(logits), finite, logits)
        params = [seq.request.sampling for seq in seqs]
        sampled = [i for i, own in enumerate(params) if own.temperature >= GREEDY_BELOW]
        if len(sampled) == len(params):
            return Chosen(sample(logits, params, positions), finite, logits)
        token_ids = best_tokens(logits)
        if sampled:
            index = to_device(sampled, self._device)
            token_ids[index] = sample(logits[index], [params[i] for i in sampled], positions[index])
        return Chosen(token_ids, finite, logits)

    def rank(
        self,
        logits: torch.Tensor,
        seqs: Rows[Sequence],
        positions: torch.Tensor,
        count: int,
        *,
        keep_filtered: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens that `choose` would choose at each row, were the better ones refused.

        logits: [n, r, V] of a Chosen; positions: [n, r]. keep_filtered: tokens that the filters drop have their
        probabilities, too; otherwise minus infinity. Returns ([n, r, min(count, V)] int64 ids, best first, and their
        natural-log probabilities).
        """
        logits = widened(logits)
        scores = logits
        sampled = [i for i, seq in enumerate(seqs) if seq.request.sampling.temperature >= GREEDY_BELOW]
        if sampled:
            index = to_device(sampled, self._device)
            params = [seqs[i].request.sampling for i in sampled]
            scores = logits.index_copy(0, index, noisy_scores(logits[index], params, positions[index]).to(logits.dtype))
        best, ids = scores.topk(min(count, logits.shape[-1]), dim=-1)
        logprobs = logits.gather(-1, ids) - logits.logsumexp(dim=-1, keepdim=True)
        return ids, logprobs if keep_filtered else logprobs.masked_fill(best == NEGATIVE_INFINITY, NEGATIVE_INFINITY)

    def _bind(
        self,
        logits: torch.Tensor,
        bound: list[int],
        seqs: Rows[Sequence],
        draft_tokens: Rows[Rows[int]] | None,
        grammar_rows: Rows[int | None] | None,
    ) -> None:
        """Applies the grammars of the spans at `bound`; see `choose`."""
        bound_seqs = [seqs[i] for i in bound]
        if draft_tokens is not None:
            self._apply_grammars(logits, bound, bound_seqs, [draft_tokens[i] for i in bound])
        elif grammar_rows is not None:
            self._apply_grammars_to_rows(logits, bound, bound_seqs, [grammar_rows[i] for i in bound])

    def _apply_grammars(
        self, logits: torch.Tensor, index: list[int], seqs: Rows[Sequence], draft_tokens: Rows[Rows[int]]
    ) -> None:
        """Only the spans at `index` have a grammar; seqs and draft_tokens are theirs alone."""
        refused = self._refused(seqs, draft_tokens, logits.shape[1], logits.shape[2])
        if len(index) == logits.shape[0]:
            logits.masked_fill_(refused, NEGATIVE_INFINITY)
        else:
            where = to_device(index, self._device)
            logits[where] = logits[where].masked_fill(refused, NEGATIVE_INFINITY)

    def _apply_grammars_to_rows(
        self, logits: torch.Tensor, index: list[int], seqs: Rows[Sequence], rows: Rows[int | None]
    ) -> None:
        """Binds one row of each span at `index`: the one that follows its settled tokens."""
        refused = self._refused(seqs, [[]] * len(seqs), 1, logits.shape[2])[:, 0]
        where = to_device(index, self._device), to_device(rows, self._device)
        logits[where] = logits[where].masked_fill(refused, NEGATIVE_INFINITY)

    def _refused(
        self, seqs: Rows[Sequence], draft_tokens: Rows[Rows[int]], num_rows: int, vocab_size: int
    ) -> torch.Tensor:
        """[k, num_rows, vocab_size] bool: the tokens that the grammars of k sequences do not allow (`token_masks`)."""
        states = [_grammar_of(seq) for seq in seqs]
        masks = token_masks(states, [seq.token_ids for seq in seqs], draft_tokens, num_rows)
        packed = to_device(masks, self._device)  # [k, r, bytes]
        return (packed[..., None] & self._bits == 0).flatten(-2)[..., :vocab_size]

    def _apply_bias(self, logits: torch.Tensor, seqs: Rows[Sequence]) -> None:
        entries = [
            (i, token, bias) for i, seq in enumerate(seqs) for token, bias in seq.request.sampling.logit_bias.items()
        ]
        if entries:
            rows, tokens, values = zip(*entries, strict=True)
            bias = to_device(values, self._device, logits.dtype)[:, None]
            logits[to_device(rows, self._device), :, to_device(tokens, self._device)] += bias

    def _bar(self, logits: torch.Tensor, seqs: Rows[Sequence]) -> None:
        """Tokens that an answer never holds."""
        alike = seqs[0].barred_token_ids
        if all(seq.barred_token_ids == alike for seq in seqs):  # as a load generator asks for: one operation
            logits.index_fill_(-1, to_device(sorted(alike), self._device), NEGATIVE_INFINITY)
            return
        entries = [(i, token) for i, seq in enumerate(seqs) for token in seq.barred_token_ids]
        rows, tokens = to_device(entries, self._device).unbind(dim=1)
        logits[rows, :, tokens] = NEGATIVE_INFINITY

    def _bar_ends(self, logits: torch.Tensor, seqs: Rows[Sequence], positions: torch.Tensor) -> None:
        """End tokens at positions before `min_tokens`."""
        entries = [
            (i, token, seq.num_prompt + seq.request.sampling.min_tokens)
            for i, seq in enumerate(seqs)
            if seq.request.sampling.min_tokens
            for token in seq.end_token_ids
        ]
        if entries:
            columns = to_device(entries, self._device)
            rows, tokens, limits = columns.unbind(dim=1)
            banned = positions[rows] < limits[:, None]  # [entries, r]
            logits[rows, :, tokens] = logits[rows, :, tokens].masked_fill(banned, NEGATIVE_INFINITY)

    def _apply_penalties(
        self,
        logits: torch.Tensor,
        seqs: Rows[Sequence],
        unsettled: torch.Tensor | None,
        cumulative: bool,
        without_own: bool,
    ) -> None:
        penalised = [i for i, seq in enumerate(seqs) if seq.request.sampling.penalises]
        if not penalised:
            return
        index = to_device(penalised, self._device)
        subset = [seqs[i] for i in penalised]
        generated, prompt = self._history.counts(subset)  # [k, V] each
        counts = generated[:, None, :]
        if unsettled is not None:
            counts = counts + unsettled_counts(unsettled[index], logits.shape[-1], cumulative, without_own)
        params = to_device(
            [
                (s.request.sampling.repetition_penalty, s.request.sampling.frequency_penalty,
                 s.request.sampling.presence_penalty)
                for s in subset
            ],
            self._device, logits.dtype,
        )  # fmt: skip
        repetition, frequency, presence = (column[:, None, None] for column in params.unbind(dim=1))
        rows = logits[index]
        seen = (counts > 0) | prompt[:, None, :]
        rows = torch.where(seen, torch.where(rows > 0, rows / repetition, rows * repetition), rows)
        rows = rows - counts.to(rows.dtype) * frequency - (counts > 0).to(rows.dtype) * presence
        logits[index] = rows


def _scores_of(chosen: Chosen, logits: torch.Tensor) -> torch.Tensor:
    """[n, r]: the logit of each chosen token."""
    return logits.gather(-1, chosen.token_ids[..., None])[..., 0]


def _are_plain(seqs: Rows[Sequence], positions: torch.Tensor | None) -> bool:
    """Whether every sequence takes the likeliest token, whatever came before it."""
    plain = all(seq.plain for seq in seqs)
    if positions is None and not plain:
        raise ValueError("positions are needed: parameters have a say in the choice")
    return plain


def _bound(
    seqs: Rows[Sequence], draft_tokens: Rows[Rows[int]] | None, grammar_rows: Rows[int | None] | None
) -> list[int]:
    """The spans of which a row is bound by a grammar; see Sampler.choose."""
    if draft_tokens is not None:
        return [i for i, seq in enumerate(seqs) if seq.grammar is not None]
    return [i for i, row in enumerate(grammar_rows or ()) if row is not None]


def _grammar_of(seq: Sequence) -> GrammarState:
    if seq.grammar is None:
        raise ValueError(f"request {seq.request.request_id} has no grammar")
    return seq.grammar
