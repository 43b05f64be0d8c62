"""Bookkeeping of KV pages: the owners of each page, and the full pages that a new request may reuse. No torch.

A full page is named by a hash of everything its KV depends on: every token up to its end, and the salt. Equal hashes
therefore mean equal KV, and a chain of hashes is matched page by page from the front. Where context is encoded by
blocks, KV depends on the tokens up to the end of a block: pages are then hashed and matched in *groups* that end with
one.
"""

import hashlib
import struct
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from engine.errors import IntegrityError, OutOfPages


class PageAllocator:
    """Hands out pages of one pool, counts references to them, and keeps registered ones for reuse until space is short.

    A page is in one of three states: *owned* (referenced at least once), *cached* (registered, without references,
    evictable), or *free*. All operations are O(1) a page.
    """

    def __init__(self, num_pages: int, page_size: int, prefix_caching: bool = True, group: int = 1) -> None:
        """group: pages that are reused together or not at all, because the KV of each depends on the tokens of all."""
        if num_pages < 1 or page_size < 1:
            raise ValueError(f"a pool needs pages and a page needs positions: got {num_pages} pages of {page_size}")
        self.num_pages = num_pages
        self.page_size = page_size
        self.prefix_caching = prefix_caching
        self.group = group
        self._references = [0] * num_pages
        self._hash_of: list[bytes | None] = [None] * num_pages
        self._page_of: dict[bytes, int] = {}
        # A stack: the page released last is the one most likely still in the processor's cache.
        self._free = list(range(num_pages - 1, -1, -1))
        # Least recently used first. Keys are pages; the values mean nothing.
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._encode_group = struct.Struct(f"<{group * page_size}I")

    @property
    def num_free(self) -> int:
        """Pages that `allocate` can hand out right now, evictable ones included."""
        return len(self._free) + len(self._cached)

    @property
    def num_cached(self) -> int:
        """Registered pages without references: reusable by `match`, and evicted when space is short."""
        return len(self._cached)

    def extend_hashes(self, hashes: list[bytes], token_ids: list[int], salt: str, limit_pages: int) -> None:
        """Extends a hash chain in place to the first `limit_pages` full pages of `token_ids`; never shortens it.

        `hashes` must be empty or an earlier result for the same salt and a prefix of the same tokens; only new pages
        are hashed, in whole groups. The hash of a group's last page = SHA-256(that of the group before, or the root ||
        the group's token ids as little-endian uint32); that of another page = SHA-256(the last one's || its index in
        the group, a byte or more).
        """
        size = self.page_size * self.group
        last = self.whole_groups(min(limit_pages, len(token_ids) // self.page_size))
        if len(hashes) >= last:
            return
        # The root hashes 32 bytes and a page hashes more, so no salt can be chosen that passes for someone's page.
        parent = hashes[-1] if hashes else _sha256(_sha256(salt.encode()))
        for index in range(len(hashes) // self.group, last // self.group):
            parent = _sha256(parent + self._encode_group.pack(*token_ids[index * size : (index + 1) * size]))
            hashes += [_sha256(parent + b"%d" % page) for page in range(self.group - 1)]
            hashes.append(parent)

    def whole_groups(self, pages: int) -> int:
        """The most pages, up to so many, that are whole groups."""
        return pages - pages % self.group

    def match(self, hashes: list[bytes], limit_pages: int) -> list[int]:
        """Returns the pages of the chain's longest cached prefix, at most `limit_pages`, and takes a reference on each.

        Only whole groups match.

        The caller must never write to them. Give them back with `release`.
        """
        pages: list[int] = []
        for page_hash in hashes[: max(limit_pages, 0)]:
            page = self._page_of.get(page_hash)
            if page is None:
                break
            pages.append(page)
        del pages[self.whole_groups(len(pages)) :]
        for page in pages:
            if self._references[page] == 0:
                del self._cached[page]
            self._references[page] += 1
        return pages

    def allocate(self, count: int) -> list[int]:
        """Takes `count` private pages, with one reference each; evicts the least recently used cached ones if it must.

        Raises OutOfPages, having changed nothing, when fewer than `count` are obtainable. Their contents are stale.
        """
        if count > self.num_free:
            raise OutOfPages(f"{count} pages wanted, {self.num_free} of {self.num_pages} obtainable")
        pages: list[int] = []
        for _ in range(count):
            if self._free:
                page = self._free.pop()
            else:
                page, _ = self._cached.popitem(last=False)
                self._unregister(page)
            self._references[page] = 1
            pages.append(page)
        return pages

    def register(self, page: int, page_hash: bytes) -> None:
        """Offers an owned page for reuse: it holds the final KV of the full page that `page_hash` names.

        When another page already has this hash the older one stays and this one remains private. Does nothing when
        prefix caching is off. Raises IntegrityError for a page without an owner, or one registered under another hash.
        """
        if self._references[page] == 0:
            raise IntegrityError(f"page {page} is registered while nobody owns it")
        known = self._hash_of[page]
        if known is not None and known != page_hash:
            raise IntegrityError(f"page {page} is registered already, under another hash")
        if self.prefix_caching and page_hash not in self._page_of:
            self._page_of[page_hash] = page
            self._hash_of[page] = page_hash

    def release(self, pages: Sequence[int]) -> None:
        """Drops one reference on each page, given in order of position. Raises IntegrityError for one without an owner.

        The last reference of a registered page leaves it cached, that of any other frees it.
        """
        # Back to front: a page far down a chain becomes the older one and is evicted before those it depends on.
        for page in reversed(pages):
            if self._references[page] == 0:
                raise IntegrityError(f"page {page} is released more often than it was taken")
            self._references[page] -= 1
            if self._references[page] == 0:
                if self._hash_of[page] is None:
                    self._free.append(page)
                else:
                    self._cached[page] = None

    def check_integrity(self, owners: Iterable[Sequence[int]]) -> None:
        """Raises IntegrityError unless the bookkeeping agrees with `owners`, the page lists of all who hold pages.

        O(pages): for tests and debugging.
        """
        held: Counter[int] = Counter()
        for pages in owners:
            _require(len(set(pages)) == len(pages), f"an owner holds a page twice: {list(pages)}")
            held.update(pages)
        _require(all(0 <= page < self.num_pages for page in held), "an owner holds a page outside the pool")
        free = set(self._free)
        _require(len(free) == len(self._free), "a page is free twice")
        for page in range(self.num_pages):
            references, page_hash = self._references[page], self._hash_of[page]
            _require(references == held[page], f"page {page}: {references} references, {held[page]} owners")
            states = (references > 0) + (page in free) + (page in self._cached)
            _require(states == 1, f"page {page} is in {states} of the states owned, cached and free")
            if page_hash is None:
                _require(page not in self._cached, f"page {page} is cached without a hash")
            else:
                _require(page not in free, f"page {page} is free with a hash")
                _require(self._page_of.get(page_hash) == page, f"page {page}'s hash leads to another page")
        registered = sum(page_hash is not None for page_hash in self._hash_of)
        _require(len(self._page_of) == registered, "a hash leads to a page that does not have it")
        owned = sum(references > 0 for references in self._references)
        _require(owned + self.num_free == self.num_pages, "the counts do not add up to the pool")

    def _unregister(self, page: int) -> None:
        page_hash = self._hash_of[page]
        assert page_hash is not None
        del self._page_of[page_hash]
        self._hash_of[page] = None


def _sha256(message: bytes) -> bytes:
    return hashlib.sha256(message).digest()


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise IntegrityError(message)
