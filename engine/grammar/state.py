"""GrammarState: the tokens that a grammar allows next in one answer, also along drafts and after rejections.

A state is advanced lazily from the answer's settled tokens, so preemption, prefix caching and the order of steps cannot
break it. Draft tokens are consumed by a copy: a row's mask depends on the tokens before it alone, so verification
chooses what plain decoding would choose.

No torch here: masks are numpy arrays, one bit a token. The grammar library is llguidance: it parses lazily (no start-up
cost to speak of), copies a state in microseconds, and checks and masks along a draft without the interpreter's lock.
A state that has rolled back is not used again: version 1.9 may then give a mask of the branch that it came back from
(two tools whose names differ in the last letter).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from functools import cache
from itertools import takewhile

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLTokenizer
from numpy.typing import NDArray

MAX_THREADS = 8
"""Threads that compute masks. A mask takes some ten microseconds, so a few threads are enough for any batch."""

INLINE_ROWS = 32
"""Most masks that are computed on the calling thread alone."""
FORCED_CHOICES = 64
"""At most so many allowed tokens are taken for different spellings of one forced text."""

Pick = Callable[[int, NDArray[np.uint8]], int | None]
"""Chooses the token at an index of a draft among those that a mask allows ([bytes], as `token_masks` gives them); None:
none of them."""

NO_TOKEN_FITS = "No token of this model's vocabulary can continue the answer within the grammar."
TOO_COMPLEX = "The grammar became too complex for this answer to be continued."


@dataclass(frozen=True)
class GrammarVocabulary:
    """The model's vocabulary as the grammar library sees it: bytes of text, control tokens, end tokens."""

    tokenizer: LLTokenizer
    end_token_ids: frozenset[int]
    """Ids that the library takes for the end of the text; never empty."""

    def text_length(self, token: int) -> int:
        """Bytes of a token's text, white space not counted."""
        return len(b"".join(self.tokenizer.decode_bytes([token]).split()))

    @property
    def num_words(self) -> int:
        """32-bit words of a mask. Bits beyond the tokenizer's ids, and of ids without text, are never set."""
        return -(-self.tokenizer.vocab_size // 32)


@dataclass(frozen=True)
class CompiledGrammar:
    """A grammar ready to be followed by any number of sequences. Its matcher stays at the start."""

    vocabulary: GrammarVocabulary
    matcher: LLMatcher


class GrammarState:
    """The position of one answer in its grammar.

    Its methods take the sequence's token ids: those before `answer_start` (the prompt), then every settled token.
    """

    def __init__(self, compiled: CompiledGrammar, end_token_ids: frozenset[int], answer_start: int = 0) -> None:
        """end_token_ids: tokens that end the answer."""
        self._compiled = compiled
        self._matcher = compiled.matcher.deep_copy()
        self._answer_start = answer_start
        self._consumed = 0
        self.end_token_ids = end_token_ids
        self.failure = NO_TOKEN_FITS
        """Why the answer cannot be continued, once it cannot."""

    @property
    def vocabulary(self) -> GrammarVocabulary:
        return self._compiled.vocabulary

    def follow(self, token_ids: list[int]) -> LLMatcher:
        """The matcher after all settled tokens. One that is in an error state is replaced by a fresh one first."""
        if self._matcher.is_error():
            self._matcher, self._consumed = self._compiled.matcher.deep_copy(), 0
        new = token_ids[self._answer_start + self._consumed :]
        if new:
            self._matcher.consume_tokens(new)
            self._consumed += len(new)
        return self._matcher

    def is_complete(self, token_ids: list[int]) -> bool:
        """Whether what has settled is a whole text of the grammar."""
        matcher = self.follow(token_ids)
        return not matcher.is_error() and matcher.is_accepting()

    def fit(self, token_ids: list[int], drafts: list[int], candidates: list[list[int]]) -> list[int]:
        """The drafts after the settled tokens, each that the grammar refuses replaced by its first allowed candidate.

        candidates: for each draft, other tokens in order of preference. The result ends early behind an end token, and
        where no candidate is allowed.
        """
        matcher = self.follow(token_ids).deep_copy()
        ends = self.end_token_ids | self.vocabulary.end_token_ids
        fitted: list[int] = []
        while len(fitted) < len(drafts):
            text = list(takewhile(lambda token: token not in ends, drafts[len(fitted) :]))
            count = matcher.try_consume_tokens(text) if text else 0
            fitted += text[:count]
            if len(fitted) == len(drafts):
                break
            token = self._first_allowed(matcher, [drafts[len(fitted)], *candidates[len(fitted)]])
            if token is None:
                break
            fitted.append(token)
            if token in ends:
                break
        return fitted

    def extend(self, token_ids: list[int], drafts: list[int | None], pick: Pick, first_end: int = 0) -> list[int]:
        """The drafts after the settled tokens as far as they are text of the grammar, or `pick` finds tokens that are.

        drafts: None where there is none. The result ends early behind an end token, and where `pick` finds none.
        first_end: index of the first draft that may be an end token. Work: at most one mask a draft.
        """
        matcher = self.follow(token_ids).deep_copy()
        ends = self.end_token_ids | self.vocabulary.end_token_ids
        stops = {None, *ends}
        extended: list[int] = []
        while len(extended) < len(drafts):
            text = [
                token for token in takewhile(lambda t: t not in stops, drafts[len(extended) :]) if token is not None
            ]
            count = matcher.try_consume_tokens(text) if text else 0
            extended += text[:count]
            at = len(extended)
            if at == len(drafts) or matcher.is_error():
                break
            token = drafts[at]
            if token not in self.end_token_ids or not matcher.is_accepting():
                token = pick(at, self._mask(matcher, may_end=at >= first_end))
            if token is None or not (token in ends or matcher.try_consume_tokens([token])):
                break
            extended.append(token)
            if token in ends:
                break
        return extended

    def _mask(self, matcher: LLMatcher, *, may_end: bool) -> NDArray[np.uint8]:
        """[bytes]: the tokens that may stand next. may_end: the request lets the answer end there."""
        mask = np.zeros((1, self.vocabulary.num_words), dtype=np.uint32)
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint32)
        if not matcher.is_error():
            mask[0, : len(bits)] = bits[: mask.shape[1]]
            _place_end_tokens(mask, self.vocabulary.end_token_ids, self.end_token_ids)
            for token in () if may_end else self.end_token_ids:
                mask[0, token >> 5] &= ~(np.uint32(1) << np.uint32(token & 31))
        words: NDArray[np.uint32] = mask[0]
        return words.view(np.uint8)

    def _first_allowed(self, matcher: LLMatcher, tokens: list[int]) -> int | None:
        """The first token that may stand next. It has been consumed, unless it ends the text."""
        for token in tokens:
            if token in self.end_token_ids:
                if matcher.is_accepting():
                    return token
            elif token not in self.vocabulary.end_token_ids and matcher.try_consume_tokens([token]):
                return token
        if matcher.is_error():
            return None
        if matcher.is_stopped():
            return min(self.end_token_ids, default=None)
        return self._forced(matcher)

    def _forced(self, matcher: LLMatcher) -> int | None:
        """Where the text is all but forced, the allowed token with most of it; it has been consumed."""
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        if matcher.is_error():
            return None
        allowed = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
        if len(allowed) > FORCED_CHOICES:
            return None
        text = [token for token in allowed.tolist() if token not in self.end_token_ids | self.vocabulary.end_token_ids]
        token = max(text, key=self.vocabulary.text_length, default=None)
        return token if token is not None and matcher.try_consume_tokens([token]) else None


def token_masks(
    states: Rows[GrammarState], token_ids: Rows[list[int]], drafts: Rows[Rows[int]], num_rows: int
) -> NDArray[np.uint8]:
    """The tokens that each of k grammars allows at `num_rows` consecutive rows.

    token_ids: of each sequence, as GrammarState takes them. Row 0 follows the settled tokens, row i also the first i
    drafts (there are num_rows - 1 of them). Returns [k, num_rows, bytes], bit j % 8 of byte j // 8 for token id j. Rows
    behind a draft that its grammar refuses hold ones: that draft is never accepted. Zeros stand where the library gave
    up: nothing may be chosen there.
    """
    matchers = [state.follow(settled) for state, settled in zip(states, token_ids, strict=True)]
    if num_rows > 1:
        matchers = [matcher.deep_copy() for matcher in matchers]
    masks = np.full((len(states), num_rows, states[0].vocabulary.num_words), 0xFFFFFFFF, dtype=np.uint32)
    _fill(matchers, drafts, masks)
    for state, settled, matcher, mask in zip(states, token_ids, matchers, masks, strict=True):
        if matcher.is_error():
            _fill_first(state, settled, mask)
        _place_end_tokens(mask, state.vocabulary.end_token_ids, state.end_token_ids)
    return masks.view(np.uint8)


def is_allowed(mask: NDArray[np.uint8], token: int) -> bool:
    """Whether a mask allows a token. mask: [bytes]. Ids beyond the mask have no text."""
    return token >> 3 < len(mask) and bool(mask[token >> 3] >> (token & 7) & 1)


def only_token(mask: NDArray[np.uint8]) -> int | None:
    """The token that a mask allows, if it allows one alone. mask: [bytes]."""
    filled = np.flatnonzero(mask)
    if len(filled) != 1 or int(mask[filled[0]]).bit_count() != 1:
        return None
    return int(filled[0]) * 8 + int(mask[filled[0]]).bit_length() - 1


def _fill(matchers: list[LLMatcher], drafts: Rows[Rows[int]], masks: NDArray[np.uint32]) -> None:
    """Has the library write the masks, in parallel over the matchers; their states do not change."""
    count, num_rows, words = masks.shape
    if any(len(tokens) != num_rows - 1 for tokens in drafts):
        raise ValueError(f"{num_rows} rows follow {num_rows - 1} drafts")
    executor, threads = _executor()
    where = (masks.ctypes.data, words * 4, count * num_rows)
    # A list of one is filled by this very thread, which is quicker than to wake others for little.
    step = 1 if threads == 1 or count * num_rows <= INLINE_ROWS else count
    for start in range(0, count, step):
        some = range(start, min(start + step, count))
        if num_rows == 1:
            executor.unsafe_compute_mask_ptr([(matchers[i], i) for i in some], *where)
        else:
            jobs = [(matchers[i], i * num_rows, list(drafts[i])) for i in some]
            executor.unsafe_compute_mask_ptr_with_draft_token(jobs, *where)


def _fill_first(state: GrammarState, token_ids: list[int], mask: NDArray[np.uint32]) -> None:
    """Fills row 0 alone, after the library gave up somewhere along the drafts. mask: [rows, words].

    With zeros in every other row exactly one token settles, and the next pass stands where plain decoding would.
    """
    matcher = state.follow(token_ids)
    mask[:] = 0
    _fill([matcher], [[]], mask[None, :1])
    if matcher.is_error():
        mask[:] = 0
        if not matcher.get_error().startswith("NoExtension"):
            state.failure = TOO_COMPLEX


def _place_end_tokens(mask: NDArray[np.uint32], known: frozenset[int], wanted: frozenset[int]) -> None:
    """Allows the request's own end tokens exactly where the text may end. mask: [rows, words]; known: the library's."""
    if known == wanted:
        return
    end = min(known)
    may_end = (mask[:, end >> 5] >> np.uint32(end & 31)) & np.uint32(1)
    for token in known | wanted:
        word, bit = token >> 5, np.uint32(token & 31)
        mask[:, word] &= ~(np.uint32(1) << bit)
        if token in wanted:
            mask[:, word] |= may_end << bit


@cache
def _executor() -> tuple[LLExecutor, int]:
    """The threads that compute masks, shared by all engines of the process, and how many they are. Not more than half
    the cores: on a CPU the model's own threads need the rest."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, min(MAX_THREADS, cores // 2))
    return LLExecutor(threads), threads
