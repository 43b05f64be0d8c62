"""The attention backends by name."""

from __future__ import annotations

import os
from importlib.util import find_spec

from engine.attention.base import AttentionBackend
from engine.attention.sdpa import SdpaAttention
from engine.errors import ConfigError
from engine.kv_cache.pool import KVCachePool


def make_attention(name: str, pool: KVCachePool, num_heads: int) -> AttentionBackend:
    """The backend `EngineConfig.attention` names. Raises ConfigError where it cannot run this model on this device."""
    if name == "sdpa":
        return SdpaAttention(pool, num_heads)
    if name != "triton":
        raise ConfigError(f"attention must be sdpa or triton, not {name!r}.")
    # Triton's interpreter runs kernels on a CPU, thousands of times slower: for tests.
    if pool.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ConfigError(f"attention 'triton' runs on NVIDIA GPUs, not on {pool.device}: choose sdpa.")
    if find_spec("triton") is None:
        raise ConfigError("attention 'triton' needs the triton package: install lightcone[triton], or choose sdpa.")
    from engine.attention.triton_paged import TritonAttention

    try:
        return TritonAttention(pool, num_heads)
    except ValueError as error:
        raise ConfigError(f"attention 'triton' cannot run this model: {error}; choose sdpa.") from error
