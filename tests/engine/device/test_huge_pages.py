"""Huge pages: weights keep their values and lie in them. If one fails, passes of few rows lose a quarter of their
speed, or the server does not start on a system without huge pages."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch

from engine.device import huge_pages

granted = pytest.mark.skipif(
    huge_pages.setting() not in ("always", "madvise"), reason="this kernel grants no transparent huge pages"
)


def in_huge_pages() -> int:
    """Bytes of this process."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("AnonHugePages:"))


def fresh(size: int) -> torch.Tensor:
    """[size] uint8 in memory that nothing had before."""
    return torch.frombuffer(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=torch.uint8)


@granted
def test_memory_is_in_huge_pages_and_says_the_same() -> None:
    before = in_huge_pages()
    memory = fresh(64 << 20).view(torch.int32)
    torch.arange(16 << 20, dtype=torch.int32, out=memory)
    huge_pages.use_for_large_memory()
    assert in_huge_pages() - before > 48 << 20
    assert torch.equal(memory, torch.arange(16 << 20, dtype=torch.int32))


@granted
def test_one_tensor_is_in_huge_pages_before_it_is_written() -> None:
    before = in_huge_pages()
    memory = fresh(32 << 20)
    huge_pages.use_for(memory)
    memory.fill_(7)
    assert in_huge_pages() - before > 24 << 20
    huge_pages.use_for(torch.empty(0))
    huge_pages.use_for(torch.zeros(3))


@pytest.mark.parametrize(("text", "expected"), [("always [madvise] never\n", "madvise"), ("[never]", "never")])
def test_a_kernel_without_huge_pages_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, expected: str
) -> None:
    setting = tmp_path / "enabled"
    monkeypatch.setattr(huge_pages, "SETTING", setting)
    assert huge_pages.setting() == ""
    setting.write_text(text)
    assert huge_pages.setting() == expected
    if expected != "madvise":
        monkeypatch.setattr(huge_pages, "MAPS", tmp_path / "not there")
        huge_pages.use_for_large_memory()
