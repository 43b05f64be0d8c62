"""DecoderConfig: the shape and the traits of a decoder."""

from __future__ import annotations

from dataclasses import dataclass

from engine.models.mlp.config import ExpertConfig
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
    experts: ExpertConfig | None = None
    """Layers have experts instead of one MLP, which only the first of them may have."""

    @property
    def q_dim(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def layer_shapes(self) -> list[tuple[int, int]]:
        """(outputs, inputs) of the layers' matrices, each shape once; of an expert layer one expert."""
        hidden, experts = self.hidden_size, self.experts
        inners = [self.intermediate_size]
        if experts is not None:
            dense = self.intermediate_size if experts.num_dense_layers else 0
            inners = [size for size in (experts.intermediate_size, experts.shared_size, dense) if size]
        shapes = [(self.q_dim + 2 * self.kv_dim, hidden), (hidden, self.q_dim)]
        return shapes + [shape for inner in inners for shape in ((2 * inner, hidden), (hidden, inner))]
