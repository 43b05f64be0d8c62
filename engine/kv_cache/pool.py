"""The KV cache's tensors: K and V of every page, and the page table the attention kernels read."""

from __future__ import annotations

import numpy as np
import torch

from engine.device import huge_pages
from engine.device.transfer import to_device


class KVCachePool:
    """Pages of K and V for all layers, allocated once. PageAllocator knows the owner of each page.

    A *slot* is one KV position of the pool: slot = page * page_size + offset within the page.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_pages: int,
        page_size: int,
        num_kv_heads: int,
        head_dim: int,
        max_rows: int,
        max_pages_per_row: int,
        dtype: torch.dtype,
        device: torch.device,
        padding_page: bool = False,
        others: tuple[KVCachePool, ...] = (),
    ) -> None:
        """padding_page: adds a page that nobody owns, for what captured passes write of their padding. others: pools
        of layers with another shape of K and V, for the same pages: this one's page table becomes theirs."""
        self.num_layers = num_layers
        self.num_pages = num_pages
        self.page_size = page_size
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.dtype = dtype
        self.device = device
        stored = num_pages + padding_page
        shape = (num_layers, stored * page_size, num_kv_heads, head_dim)
        # Zeros, not empty: attention reads slots not written yet and gives them weight 0, and 0 * NaN = NaN.
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        """[num_layers, pages * page_size, num_kv_heads, head_dim], contiguous; so is `v`."""
        self.v = torch.zeros(shape, dtype=dtype, device=device)
        if device.type == "cpu":
            for stored_ones in (self.k, self.v):
                huge_pages.use_for(stored_ones)
        by_layer = (num_layers, stored, page_size * num_kv_heads * head_dim)
        self.k_pages, self.v_pages = self.k.view(by_layer).unbind(0), self.v.view(by_layer).unbind(0)
        """By layer: [pages, page_size * num_kv_heads * head_dim], views."""
        self._k_slots, self._v_slots = self.k.unbind(0), self.v.unbind(0)
        self.host_page_table = np.zeros((max_rows, max_pages_per_row), dtype=np.int64)
        """The page table on the host, for what the host decides of a pass without waiting for the device."""
        self.page_table = torch.from_numpy(self.host_page_table).to(device)
        """[max_rows, max_pages_per_row] int64: the pages of each running sequence, by position. Entries past its last
        page are stale. On a CPU it shares the host's memory."""
        self.others = others
        for other in others:
            other.host_page_table, other.page_table = self.host_page_table, self.page_table

    @property
    def padding_slot(self) -> int:
        """First slot of the padding page."""
        return self.num_pages * self.page_size

    @staticmethod
    def bytes_per_page(*, num_layers: int, page_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """Bytes of K and V that one page takes over all layers."""
        return 2 * num_layers * page_size * num_kv_heads * head_dim * dtype.itemsize

    def map_pages(self, row: int, first: int, pages: list[int]) -> None:
        """Sets page_table[row, first : first + len(pages)]."""
        self.host_page_table[row, first : first + len(pages)] = pages
        if self.device.type != "cpu":
            self.page_table[row, first : first + len(pages)] = to_device(pages, self.device)

    def write(self, layer: int, slots: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Stores K and V of T tokens. slots: [T] int64, without repeats; k, v: [T, num_kv_heads, head_dim]."""
        self._k_slots[layer].index_copy_(0, slots, k)
        self._v_slots[layer].index_copy_(0, slots, v)

    def clear(self, pages: list[int]) -> None:
        """Zeroes pages in every layer, so that non-finite values in them cannot reach their next owner."""
        index = to_device(pages, self.device, torch.int64)
        for stored in (self.k, self.v):
            stored.view(self.num_layers, -1, self.page_size * self.num_kv_heads * self.head_dim).index_fill_(
                1, index, 0
            )
        for other in self.others:
            other.clear(pages)
