"""KVCachePool: K and V land where the page table says, and bad values do not outlive their owner."""

import torch

from engine.kv_cache.pool import KVCachePool

torch.set_num_threads(1)


def new_pool(
    dtype: torch.dtype = torch.float32, num_kv_heads: int = 2, others: tuple[KVCachePool, ...] = ()
) -> KVCachePool:
    return KVCachePool(
        num_layers=2,
        num_pages=5,
        page_size=4,
        num_kv_heads=num_kv_heads,
        head_dim=3,
        max_rows=3,
        max_pages_per_row=4,
        dtype=dtype,
        device=torch.device("cpu"),
        others=others,
    )


def test_a_fresh_pool_is_finite_so_that_unwritten_slots_cannot_spoil_an_answer() -> None:
    pool = new_pool()
    assert pool.k.shape == pool.v.shape == (2, 20, 2, 3)
    assert not pool.k.any()
    assert not pool.v.any()


def test_tokens_are_stored_in_their_slots_and_nowhere_else() -> None:
    pool = new_pool()
    k, v = torch.randn(3, 2, 3), torch.randn(3, 2, 3)
    slots = torch.tensor([7, 0, 19])
    pool.write(1, slots, k, v)
    assert torch.equal(pool.k[1, slots], k)
    assert torch.equal(pool.v[1, slots], v)
    assert not pool.k[0].any()
    untouched = [slot for slot in range(20) if slot not in (0, 7, 19)]
    assert not pool.k[1, untouched].any()
    assert not pool.v[1, untouched].any()


def test_pages_are_mapped_for_one_sequence_alone() -> None:
    pool = new_pool()
    pool.map_pages(1, 0, [4, 2])
    pool.map_pages(1, 2, [3])
    pool.map_pages(2, 1, [])
    assert pool.page_table.tolist() == [[0, 0, 0, 0], [4, 2, 3, 0], [0, 0, 0, 0]]


def test_clearing_pages_removes_bad_values_in_every_layer_and_leaves_others_alone() -> None:
    pool = new_pool()
    pool.k.fill_(torch.nan)
    pool.v.fill_(torch.inf)
    pool.clear([1, 4])
    for stored, bad in ((pool.k, torch.isnan), (pool.v, torch.isinf)):
        by_page = stored.view(2, 5, 4, 2, 3)
        assert not by_page[:, [1, 4]].any()
        assert bad(by_page[:, [0, 2, 3]]).all()


def test_the_stated_size_of_a_page_is_what_the_pool_takes() -> None:
    """The pool is sized to the machine's memory by this figure."""
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        pool = new_pool(dtype)
        size = KVCachePool.bytes_per_page(num_layers=2, page_size=4, num_kv_heads=2, head_dim=3, dtype=dtype)
        assert pool.k.nbytes + pool.v.nbytes == 5 * size


def test_layers_of_another_shape_have_the_same_pages() -> None:
    """A page that is mapped, or cleared, in some layers only would hold another sequence's text in the others."""
    other = new_pool(num_kv_heads=1)
    pool = new_pool(others=(other,))
    pool.map_pages(1, 0, [4, 2])
    assert other.page_table[1].tolist() == other.host_page_table[1].tolist() == [4, 2, 0, 0]
    other.k.fill_(torch.nan)
    pool.clear([1, 4])
    assert not other.k.view(2, 5, -1)[:, [1, 4]].any()
    assert other.k.view(2, 5, -1)[:, [0, 2, 3]].isnan().all()
