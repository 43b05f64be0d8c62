"""The KV pool's size. If one fails, a server promises contexts it cannot hold, or wastes or exhausts memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from engine.config import EngineConfig
from engine.errors import ConfigError
from engine.kv_cache.pool import KVCachePool
from engine.models.decoder_config import DecoderConfig
from engine.models.rope import RopeConfig
from engine.runner.pool_size import CPU_POOL_BYTES, PoolSize, choose_pool_size

CPU = torch.device("cpu")
SHAPE = DecoderConfig(
    vocab_size=96, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16,
    rms_norm_eps=1e-5, max_positions=512, rope=RopeConfig(theta=10000.0, kind="default", parameters={}),
)  # fmt: skip


def size_of(device: torch.device = CPU, **fields: Any) -> PoolSize:
    return choose_pool_size(EngineConfig(**fields), SHAPE, torch.float32, device)


@pytest.mark.parametrize(
    ("fields", "pages", "length"),
    [
        ({"kv_cache_tokens": 1024}, 64, 512),
        ({"kv_cache_tokens": 1000}, 62, 512),  # whole pages only
        ({"kv_cache_tokens": 100}, 6, 96),  # the promise shrinks to what the pool holds
        ({"kv_cache_tokens": 1024, "max_model_len": 100}, 64, 100),
        ({"max_running": 2}, 64, 512),  # enough for all of them at their longest
        ({"max_running": 3, "max_model_len": 33}, 9, 33),
        ({"max_running": 3, "max_model_len": 33, "page_size": 64}, 3, 33),
    ],
)
def test_the_pool_on_a_cpu(fields: dict[str, Any], pages: int, length: int) -> None:
    """The server would promise contexts it cannot hold, or hold fewer requests than it could."""
    assert size_of(**fields) == PoolSize(pages, length)


def test_an_automatic_pool_is_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop would run out of memory at start-up; one request of full length must fit all the same."""
    page_bytes = KVCachePool.bytes_per_page(
        num_layers=2, page_size=16, num_kv_heads=2, head_dim=16, dtype=torch.float32
    )
    assert page_bytes == 2 * 2 * 16 * 2 * 16 * 4
    assert CPU_POOL_BYTES == 2 * 1024**3
    monkeypatch.setattr("engine.runner.pool_size.CPU_POOL_BYTES", 40 * page_bytes)
    assert size_of(max_running=64) == PoolSize(40, 512)
    monkeypatch.setattr("engine.runner.pool_size.CPU_POOL_BYTES", 10 * page_bytes)
    assert size_of(max_running=64) == PoolSize(32, 512)


def test_the_pool_on_a_gpu_takes_its_share_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and pool together would not fit, or most of the card would stay unused."""
    page_bytes = 2 * 2 * 16 * 2 * 16 * 4
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (600 * page_bytes, 1000 * page_bytes))
    assert size_of(torch.device("cuda"), gpu_memory_utilization=0.75).num_pages == 350
    with pytest.raises(ConfigError, match="single KV page"):
        size_of(torch.device("cuda"), gpu_memory_utilization=0.25)


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"max_model_len": 513}, "513"),
        ({"max_model_len": 500, "kv_cache_tokens": 400}, "kv_cache_tokens"),
        ({"kv_cache_tokens": 15}, "kv_cache_tokens"),
    ],
)
def test_a_promise_that_cannot_be_kept_is_refused(fields: dict[str, Any], part: str) -> None:
    """Requests of the promised length would be admitted and never fit."""
    with pytest.raises(ConfigError, match=part) as refused:
        size_of(**fields)
    assert "\n" not in str(refused.value)


def test_the_longest_length_is_a_whole_number_of_blocks() -> None:
    """The last block of the longest answer would reach beyond the page table."""
    sized = partial(choose_pool_size, shape=SHAPE, dtype=torch.float32, device=CPU)
    assert sized(EngineConfig(kv_cache_tokens=400), block_length=32) == PoolSize(25, 384)
    assert sized(EngineConfig(kv_cache_tokens=400), block_length=1) == PoolSize(25, 400)
    with pytest.raises(ConfigError, match=r"max_model_len \(100\) must be a multiple of 32"):
        sized(EngineConfig(max_model_len=100), block_length=32)
    with pytest.raises(ConfigError, match="not one block of 32"):
        sized(EngineConfig(kv_cache_tokens=16), block_length=32)
