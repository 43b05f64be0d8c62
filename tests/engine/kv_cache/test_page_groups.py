"""Pages that are reused together or not at all. If one fails, a prompt reads KV of another one's text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.kv_cache.pages import PageAllocator

PAGE = 4


def chain(allocator: PageAllocator, tokens: list[int], salt: str = "", pages: int = 99) -> list[bytes]:
    hashes: list[bytes] = []
    allocator.extend_hashes(hashes, tokens, salt, pages)
    return hashes


@pytest.mark.parametrize("group", [2, 3])
def test_every_page_of_a_group_is_named_by_all_of_its_tokens(group: int) -> None:
    """KV at the beginning of a block depends on the tokens at its end."""
    allocator = PageAllocator(8, PAGE, True, group)
    tokens = list(range(2 * group * PAGE))
    hashes = chain(allocator, tokens)
    assert len(set(hashes)) == 2 * group
    for i in range(len(tokens)):
        changed = chain(allocator, [*tokens[:i], 77, *tokens[i + 1 :]])
        first = i // (group * PAGE) * group
        assert changed[:first] == hashes[:first]
        assert not set(changed[first:]) & set(hashes)


def test_only_whole_groups_are_hashed_and_the_chain_can_go_on() -> None:
    allocator = PageAllocator(8, PAGE, True, 2)
    tokens = list(range(40))
    assert [len(chain(allocator, tokens[:count])) for count in (7, 8, 15, 16, 24)] == [0, 2, 2, 4, 6]
    assert [len(chain(allocator, tokens, pages=pages)) for pages in (0, 1, 2, 3, 4)] == [0, 0, 2, 2, 4]
    hashes = chain(allocator, tokens[:16])
    allocator.extend_hashes(hashes, tokens, "", 6)
    assert hashes == chain(allocator, tokens)[:6]


@given(st.integers(1, 3), st.lists(st.booleans(), min_size=9, max_size=9), st.integers(0, 9))
def test_a_match_is_the_longest_run_of_whole_groups(group: int, kept: list[bool], limit: int) -> None:
    """Whichever pages have been evicted since."""
    allocator = PageAllocator(16, PAGE, True, group)
    hashes = chain(allocator, list(range(9 * PAGE)))
    pages = allocator.allocate(len(hashes))
    for page, page_hash, keep in zip(pages, hashes, kept, strict=False):
        if keep:
            allocator.register(page, page_hash)
    matched = allocator.match(hashes, limit)
    whole = next((i for i, keep in enumerate(kept[: len(hashes)]) if not keep), len(hashes))
    assert matched == pages[: min(whole, limit) // group * group]
    allocator.check_integrity([pages, matched])
