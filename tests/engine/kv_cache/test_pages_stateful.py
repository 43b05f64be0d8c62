"""PageAllocator against a naive model of it, through random histories: no page is lost or wrongly shared."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.errors import OutOfPages
from engine.kv_cache.pages import PageAllocator

PAGE = 2
NUM_PAGES = 7

Prefix = tuple[str, tuple[int, ...]]
"""What a page's KV depends on, spelt out: the salt and every token up to the page's end."""


@dataclass
class Owner:
    salt: str
    tokens: list[int]
    pages: list[int]
    hashes: list[bytes] = field(default_factory=list)
    num_registered: int = 0

    def prefix(self, page: int) -> Prefix:
        return (self.salt, tuple(self.tokens[: (page + 1) * PAGE]))


class AllocatorMachine(RuleBasedStateMachine):
    """Requests come, share, register, leave and go bad. The model: a dict of prefixes, and a list for the LRU."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = PageAllocator(NUM_PAGES, PAGE)
        self.owners: list[Owner] = []
        self.page_of: dict[Prefix, int] = {}
        self.lru: list[int] = []

    def owned(self) -> set[int]:
        return {page for owner in self.owners for page in owner.pages}

    def take(self, count: int) -> list[int] | None:
        """Allocates, checking that exactly the oldest cached pages go, and only when no other is free."""
        unused = set(range(NUM_PAGES)) - self.owned() - set(self.lru)
        if count > len(unused) + len(self.lru):
            with pytest.raises(OutOfPages):
                self.allocator.allocate(count)
            return None
        evicted, self.lru = self.lru[: max(0, count - len(unused))], self.lru[max(0, count - len(unused)) :]
        pages = self.allocator.allocate(count)
        assert len(set(pages)) == count
        assert pages[count - len(evicted) :] == evicted
        assert set(pages) - set(evicted) <= unused
        self.page_of = {prefix: page for prefix, page in self.page_of.items() if page not in evicted}
        return pages

    def leave(self, owner: Owner) -> None:
        self.owners.remove(owner)
        self.allocator.release(owner.pages)
        registered = set(self.page_of.values())
        self.lru += [page for page in reversed(owner.pages) if page not in self.owned() and page in registered]

    @rule(
        salt=st.sampled_from(["", "s"]),
        tokens=st.lists(st.integers(0, 1), max_size=8),
        extra=st.integers(0, 2),
        limit=st.integers(0, 4),
    )
    def arrive(self, salt: str, tokens: list[int], extra: int, limit: int) -> None:
        owner = Owner(salt, tokens, [])
        self.allocator.extend_hashes(owner.hashes, tokens, salt, limit)
        expected: list[int] = []
        for page in range(min(limit, len(tokens) // PAGE)):
            if owner.prefix(page) not in self.page_of:
                break
            expected.append(self.page_of[owner.prefix(page)])
        assert len(owner.hashes) == min(limit, len(tokens) // PAGE)
        matched = self.allocator.match(owner.hashes, limit)
        assert matched == expected
        self.lru = [page for page in self.lru if page not in matched]
        owner.pages, owner.num_registered = matched, len(matched)
        self.owners.append(owner)
        private = self.take(-(-len(tokens) // PAGE) - len(matched) + extra)
        if private is None:
            self.leave(owner)
        else:
            owner.pages = matched + private

    @precondition(lambda self: self.owners)
    @rule(which=st.integers(0, 99), tokens=st.lists(st.integers(0, 1), max_size=4))
    def generate(self, which: int, tokens: list[int]) -> None:
        """The text grows, and with it the hash chain and the pages; full pages are offered for reuse."""
        owner = self.owners[which % len(self.owners)]
        needed = -(-(len(owner.tokens) + len(tokens)) // PAGE) - len(owner.pages)
        private = self.take(max(0, needed))
        if private is None:
            return
        owner.pages += private
        owner.tokens += tokens
        full = len(owner.tokens) // PAGE
        self.allocator.extend_hashes(owner.hashes, owner.tokens, owner.salt, full)
        for page in range(owner.num_registered, full):
            self.allocator.register(owner.pages[page], owner.hashes[page])
            self.page_of.setdefault(owner.prefix(page), owner.pages[page])
        owner.num_registered = full

    @precondition(lambda self: self.owners)
    @rule(which=st.integers(0, 99))
    def finish(self, which: int) -> None:
        self.leave(self.owners[which % len(self.owners)])

    @invariant()
    def books_agree(self) -> None:
        self.allocator.check_integrity([owner.pages for owner in self.owners])
        assert self.allocator.num_cached == len(self.lru)
        assert self.allocator.num_free == NUM_PAGES - len(self.owned())

    def teardown(self) -> None:
        while self.owners:
            self.leave(self.owners[-1])
        self.allocator.check_integrity([])
        assert self.allocator.num_free == NUM_PAGES
        assert self.take(NUM_PAGES) is not None


TestNoPageIsLostOrWronglyShared = AllocatorMachine.TestCase
TestNoPageIsLostOrWronglyShared.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
