"""The kernels that run a model, by the name that `EngineConfig.kernels` gives them: torch's own, or Triton's."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import NamedTuple

import torch

from engine.attention.base import AttentionBackend
from engine.attention.sdpa import SdpaAttention
from engine.attention.windows import LayeredAttention, WindowAttention
from engine.errors import ConfigError
from engine.kv_cache.pool import KVCachePool
from engine.models.decoder import Decoder
from engine.models.decoder_config import DecoderConfig
from engine.models.elementwise import Elementwise
from engine.sampling.picker import TokenPicker


class Kernels(NamedTuple):
    """The parts of a step beside matrix products and edits of logits."""

    attention: AttentionBackend
    elementwise: Elementwise
    picker: TokenPicker | None
    """None: engine.sampling.sampler does it with torch's own operations."""

    @torch.inference_mode()
    def warm_up(self, vocab_size: int, dtype: torch.dtype) -> None:
        """Compiles what is compiled at its first use. Call it before any request is served: it writes to the pool."""
        self.attention.warm_up()
        if self.picker is not None:
            self.picker.warm_up(dtype, vocab_size)


@dataclass(frozen=True)
class KernelSet:
    """The makers of one set of kernels."""

    attention: Callable[[KVCachePool, int], AttentionBackend]
    """(pool, number of query heads). May raise ConfigError."""
    elementwise: Callable[[Decoder], Elementwise]
    picker: Callable[[tuple[int, ...], torch.device], TokenPicker | None]
    """(banned token ids, device)"""
    capturable: bool
    """Whether passes with these kernels can be captured (the attention is a CapturableAttention)."""


def make_kernels(name: str, pool: KVCachePool, decoder: Decoder, banned_token_ids: tuple[int, ...]) -> Kernels:
    """The kernels that `EngineConfig.kernels` names. Raises ConfigError where they cannot run this model here."""
    attention = _make_layered(name, pool, decoder.config) or make_attention(name, pool, decoder.config.num_heads)
    made = KERNELS[name]
    return Kernels(attention, made.elementwise(decoder), made.picker(banned_token_ids, pool.device))


def _make_layered(name: str, pool: KVCachePool, shape: DecoderConfig) -> AttentionBackend | None:
    """Attention of layers that are not all alike; None where they are. Raises ConfigError for kernels without it."""
    if shape.canvas is None:
        return None
    if name != "torch":
        raise ConfigError(
            f"kernels {name!r} cannot run this model: its layers have heads of several shapes, and windows of "
            "attention; choose torch."
        )
    backends: list[AttentionBackend] = []
    layers: dict[int, tuple[int, int]] = {}
    for i, (kind, own) in enumerate(zip(shape.attention_kinds, (pool, *pool.others), strict=True)):
        layers |= {layer: (i, place) for place, layer in enumerate(kind.layers)}
        if kind.window is None:
            backends.append(SdpaAttention(own, shape.num_heads, scale=1.0))
        else:
            backends.append(WindowAttention(own, shape.num_heads, kind.window, scale=1.0))
    return LayeredAttention(backends, layers)


def make_attention(name: str, pool: KVCachePool, num_heads: int) -> AttentionBackend:
    """The attention alone of the kernels of that name. Raises ConfigError where it cannot run this model here."""
    if name not in KERNELS:
        raise ConfigError(f"kernels must be {' or '.join(KERNELS)}, not {name!r}.")
    return KERNELS[name].attention(pool, num_heads)


# Imports of engine.gpu stand in functions: they need Triton, and nothing else does.


def _triton_attention(pool: KVCachePool, num_heads: int) -> AttentionBackend:
    # Triton's interpreter runs kernels on a CPU, thousands of times slower: for tests.
    if pool.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ConfigError(f"kernels 'triton' run on NVIDIA GPUs, not on {pool.device}: choose torch.")
    if find_spec("triton") is None:
        raise ConfigError("kernels 'triton' need the triton package: install lightcone[triton], or choose torch.")
    from engine.gpu.attention import TritonAttention

    try:
        return TritonAttention(pool, num_heads)
    except ValueError as error:
        raise ConfigError(f"kernels 'triton' cannot run this model: {error}; choose torch.") from error


def _triton_elementwise(decoder: Decoder) -> Elementwise:
    from engine.gpu.elementwise import TritonElementwise

    return TritonElementwise(decoder.config.rms_norm_eps, decoder.dtype, decoder.device)


def _triton_picker(banned_token_ids: tuple[int, ...], device: torch.device) -> TokenPicker:
    from engine.gpu.choice import TritonChoice

    return TritonChoice(banned_token_ids, device)


KERNELS: Mapping[str, KernelSet] = {
    "torch": KernelSet(
        attention=SdpaAttention,
        elementwise=lambda decoder: decoder.elementwise,
        picker=lambda banned_token_ids, device: None,
        capturable=False,
    ),
    "triton": KernelSet(
        attention=_triton_attention, elementwise=_triton_elementwise, picker=_triton_picker, capturable=True
    ),
}
"""Every set of kernels, by name."""
