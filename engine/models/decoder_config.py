"""DecoderConfig: the shape and the traits of a decoder."""

from __future__ import annotations

from dataclasses import dataclass

from engine.models.rope import RopeConfig


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Shape and traits of a decoder. Sizes count elements, positions count tokens."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    """Independent of hidden_size / num_heads."""
    rms_norm_eps: float
    max_positions: int
    """Longest text the model was made for."""
    rope: RopeConfig
    tied_head: bool = False
    """The output head is the embedding matrix."""
    qk_norm: bool = False
    """RMSNorm over each head of q and k, before RoPE."""
    qkv_bias: bool = False
    """A bias is added to q, k and v."""

    @property
    def q_dim(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        return self.num_kv_heads * self.head_dim
