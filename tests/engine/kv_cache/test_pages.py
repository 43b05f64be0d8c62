"""PageAllocator, case by case: what is shared, with whom, what is evicted first, what defects are caught."""

from hashlib import sha256

import pytest

from engine.errors import IntegrityError, OutOfPages
from engine.kv_cache.pages import PageAllocator

PAGE = 4


def chain(allocator: PageAllocator, tokens: list[int], salt: str = "") -> list[bytes]:
    hashes: list[bytes] = []
    allocator.extend_hashes(hashes, tokens, salt, len(tokens))
    return hashes


def cache(allocator: PageAllocator, tokens: list[int], salt: str = "") -> list[int]:
    """Runs a request of these tokens to its end: its full pages are left cached."""
    hashes = chain(allocator, tokens, salt)
    pages = allocator.allocate(len(hashes))
    for page, page_hash in zip(pages, hashes, strict=True):
        allocator.register(page, page_hash)
    allocator.release(pages)
    return pages


def test_a_repeated_prompt_reuses_its_pages() -> None:
    allocator = PageAllocator(8, PAGE)
    pages = cache(allocator, list(range(12)))
    assert allocator.match(chain(allocator, list(range(12))), 3) == pages


def test_a_match_ends_at_the_first_token_that_differs() -> None:
    allocator = PageAllocator(8, PAGE)
    pages = cache(allocator, list(range(12)))
    other = list(range(12))
    other[5] = 99
    assert allocator.match(chain(allocator, other), 3) == pages[:1]


def test_a_page_is_not_matched_behind_another_beginning() -> None:
    """The KV of a page depends on all that came before it: the same words elsewhere are not the same page."""
    allocator = PageAllocator(8, PAGE)
    cache(allocator, [1, 2, 3, 4, 5, 6, 7, 8])
    assert allocator.match(chain(allocator, [5, 6, 7, 8]), 1) == []
    assert allocator.match(chain(allocator, [9, 9, 9, 9, 5, 6, 7, 8]), 2) == []


def test_a_match_respects_its_limit_so_that_the_last_prompt_token_is_computed() -> None:
    allocator = PageAllocator(8, PAGE)
    pages = cache(allocator, list(range(12)))
    hashes = chain(allocator, list(range(12)))
    assert allocator.match(hashes, 2) == pages[:2]
    assert allocator.match(hashes, 0) == []


def test_tenants_with_other_salts_never_share() -> None:
    allocator = PageAllocator(8, PAGE)
    cache(allocator, [1, 2, 3, 4], salt="alice")
    for salt in ("", "bob", "alice ", "Alice"):
        assert allocator.match(chain(allocator, [1, 2, 3, 4], salt), 1) == []
    assert len(allocator.match(chain(allocator, [1, 2, 3, 4], "alice"), 1)) == 1


def test_no_salt_can_pass_for_the_beginning_of_another_tenants_chain() -> None:
    """A chain's root hashes exactly 32 bytes and its pages always more, so no salt has the hash of anyone's page."""
    root = sha256(sha256(b"alice").digest()).digest()
    first = sha256(root + bytes([1, 0, 0, 0, 0, 1, 0, 0, 3, 0, 0, 0, 0, 0, 2, 0])).digest()
    second = sha256(first + bytes(16)).digest()
    assert chain(PageAllocator(8, PAGE), [1, 256, 3, 2**17, 0, 0, 0, 0], "alice") == [first, second]


def test_a_partly_filled_page_has_no_hash() -> None:
    assert len(chain(PageAllocator(8, PAGE), list(range(11)))) == 2
    assert chain(PageAllocator(8, PAGE), [1, 2, 3]) == []


def test_hashes_grow_with_the_text_and_only_new_pages_are_hashed() -> None:
    allocator = PageAllocator(8, PAGE)
    hashes = chain(allocator, list(range(8)))
    tokens = [-1] * 8 + list(range(8, 16))  # -1 cannot be hashed: reading the old pages again would fail
    allocator.extend_hashes(hashes, tokens, "", 3)
    assert hashes == chain(allocator, list(range(12)))
    allocator.extend_hashes(hashes, tokens, "", 1)
    assert len(hashes) == 3, "a chain never shrinks"


def test_two_running_requests_share_a_page_until_both_are_done() -> None:
    allocator = PageAllocator(4, PAGE)
    hashes = chain(allocator, [1, 2, 3, 4])
    first = allocator.allocate(1)
    allocator.register(first[0], hashes[0])
    second = allocator.match(hashes, 1)
    assert second == first
    allocator.release(first)
    assert allocator.num_free == 3, "still owned by the second request"
    assert allocator.num_cached == 0
    allocator.release(second)
    assert (allocator.num_free, allocator.num_cached) == (4, 1)


def test_the_same_prompt_computed_twice_keeps_the_older_page() -> None:
    allocator = PageAllocator(4, PAGE)
    hashes = chain(allocator, [1, 2, 3, 4])
    older, newer = allocator.allocate(2)
    allocator.register(older, hashes[0])
    allocator.register(newer, hashes[0])
    allocator.release([newer])
    assert allocator.num_cached == 0, "the newer copy is simply free again"
    assert allocator.match(hashes, 1) == [older]
    allocator.check_integrity([[older], [older]])


def test_the_least_recently_used_prompt_is_evicted_first() -> None:
    allocator = PageAllocator(4, PAGE)
    for name in (1, 2, 3, 4):
        cache(allocator, [name] * PAGE)
    allocator.release(allocator.match(chain(allocator, [1] * PAGE), 1))  # used again: now the most recent
    evicted = []
    for _ in range(4):
        before = [name for name in (1, 2, 3, 4) if probe(allocator, name)]
        allocator.allocate(1)
        evicted += [name for name in before if not probe(allocator, name)]
    assert evicted == [2, 3, 4, 1]


def probe(allocator: PageAllocator, name: int) -> bool:
    """Whether a prompt is cached, without touching the order of eviction."""
    return chain(allocator, [name] * PAGE)[0] in allocator._page_of


def test_eviction_eats_a_conversation_from_its_end() -> None:
    """What is left of a chain must start at its front, or the cached rest is unreachable."""
    allocator = PageAllocator(4, PAGE)
    pages = cache(allocator, list(range(16)))
    hashes = chain(allocator, list(range(16)))
    for left in (3, 2, 1, 0):
        taken = allocator.allocate(1)
        assert taken == [pages[left]]
        matched = allocator.match(hashes, 4)
        assert matched == pages[:left]
        allocator.release(matched)


def test_unused_pages_are_handed_out_before_anything_cached_is_lost() -> None:
    allocator = PageAllocator(4, PAGE)
    pages = cache(allocator, [1, 2, 3, 4])
    assert pages[0] not in allocator.allocate(3)
    assert allocator.num_cached == 1


def test_a_failed_allocation_takes_and_evicts_nothing() -> None:
    allocator = PageAllocator(4, PAGE)
    cache(allocator, [1, 2, 3, 4])
    held = allocator.allocate(1)
    with pytest.raises(OutOfPages, match="4 pages wanted, 3 of 4"):
        allocator.allocate(4)
    assert (allocator.num_free, allocator.num_cached) == (3, 1)
    allocator.check_integrity([held])


def test_without_prefix_caching_nothing_is_kept() -> None:
    allocator = PageAllocator(4, PAGE, prefix_caching=False)
    cache(allocator, list(range(8)))
    assert allocator.num_cached == 0
    assert allocator.match(chain(allocator, list(range(8))), 2) == []


def test_books_that_went_wrong_are_noticed_at_once() -> None:
    allocator = PageAllocator(4, PAGE)
    (page,) = allocator.allocate(1)
    first, second = chain(allocator, list(range(8)))
    allocator.register(page, first)
    allocator.register(page, first)
    with pytest.raises(IntegrityError, match="another hash"):
        allocator.register(page, second)
    allocator.release([page])
    with pytest.raises(IntegrityError, match="released more often"):
        allocator.release([page])
    with pytest.raises(IntegrityError, match="nobody owns"):
        allocator.register(page, first)


@pytest.mark.parametrize("owners", [[[0, 1], [2]], [[0]], [[0, 1], [1]], [[0, 1, 1]], [[0, 1], [9]]])
def test_the_integrity_check_bites(owners: list[list[int]]) -> None:
    """Leaked, lost, doubly owned, repeated and foreign pages."""
    allocator = PageAllocator(4, PAGE)
    assert sorted(allocator.allocate(2)) == [0, 1]
    allocator.check_integrity([[0, 1]])
    with pytest.raises(IntegrityError):
        allocator.check_integrity(owners)


@pytest.mark.parametrize(("num_pages", "page_size"), [(0, 4), (4, 0)])
def test_an_empty_pool_is_refused(num_pages: int, page_size: int) -> None:
    with pytest.raises(ValueError, match="needs"):
        PageAllocator(num_pages, page_size)
