"""Prefix cache: pages that sequences share, and pages whose KV has not been verified yet.

A page is offered to other requests only once finite logits have been computed from its KV. Until then the KV that a
pass has written is *unverified*: it may hold NaN or infinity. When a sequence with unverified KV leaves its pages, they
are zeroed before anybody else gets them.
"""

from __future__ import annotations

from collections.abc import Callable

from engine.kv_cache.pages import PageAllocator
from engine.sequence import Sequence


class PrefixCache:
    """Hashes, matches and registers sequences' pages, and clears unverified ones."""

    def __init__(self, allocator: PageAllocator, clear_pages: Callable[[list[int]], None], *, enabled: bool) -> None:
        """clear_pages: zeroes pages on the device. enabled: whether pages are shared at all."""
        self._allocator = allocator
        self._clear_pages = clear_pages
        self._enabled = enabled

    def match(self, seq: Sequence, limit_pages: int) -> list[int]:
        """The cached pages of the sequence's longest known prefix, at most `limit_pages`; a reference is taken on each.

        A prompt that is scored is run from the token before the first one that is to be scored.
        """
        if seq.scores_prompt:
            limit_pages = min(limit_pages, (seq.num_scored - 1) // self._allocator.page_size)
        if not self._enabled or limit_pages <= 0:
            return []
        self._allocator.extend_hashes(seq.page_hashes, seq.token_ids, seq.request.cache_salt, limit_pages)
        return self._allocator.match(seq.page_hashes, limit_pages)

    def record(self, seq: Sequence, *, verified: bool) -> None:
        """A pass has written KV of the sequence. verified: finite logits were computed from it; offers full pages."""
        seq.unverified = not verified
        # A verification may have cached tokens beyond the end token that the answer was cut at.
        full = self._allocator.whole_groups(min(seq.num_cached, len(seq.token_ids)) // self._allocator.page_size)
        if not verified or not self._enabled or full <= seq.num_registered:
            return
        self._allocator.extend_hashes(seq.page_hashes, seq.token_ids, seq.request.cache_salt, full)
        for i in range(seq.num_registered, full):
            self._allocator.register(seq.pages[i], seq.page_hashes[i])
        seq.num_registered = full

    def leave(self, seq: Sequence) -> None:
        """The sequence is about to give back its pages: clears those that hold unverified KV."""
        if seq.unverified:
            self._clear_pages(seq.pages[seq.num_registered :])
        seq.num_registered, seq.unverified = 0, False
