"""DecoderConfig: the shape and the traits of a decoder."""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.models.mlp.config import ExpertConfig
from engine.models.rope import RopeConfig


@dataclass(frozen=True, kw_only=True)
class AttentionKind:
    """The shape of attention in some of a decoder's layers."""

    layers: tuple[int, ...]
    num_kv_heads: int
    head_dim: int
    rope: RopeConfig
    window: int | None = None
    """A token sees so many positions at most, its own included; one of a canvas all of it, and window - 1 before it."""
    values_are_keys: bool = False
    """There is no projection for values: they are the keys before norm and rotation."""


@dataclass(frozen=True, kw_only=True)
class CanvasTraits:
    """Traits of a decoder that encodes text causally and refines canvases of random tokens with the same layers.

    Each part of a layer is normed before and after, beside its experts each layer has a plain MLP that every token
    takes, scores of attention are not scaled, values are normed, and a canvas is told what the last step made of it.
    """

    length: int
    """Tokens of a canvas."""
    kinds: tuple[AttentionKind, ...]
    """Of all layers. The first one's shape is the decoder's own."""
    logit_cap: float
    """Logits z become cap * tanh(z / cap)."""


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
    canvas: CanvasTraits | None = None
    """None: a Llama-like decoder."""

    @property
    def attention_kinds(self) -> tuple[AttentionKind, ...]:
        """The kinds of attention that its layers have; one where all are alike."""
        if self.canvas is not None:
            return self.canvas.kinds
        layers = tuple(range(self.num_layers))
        return (AttentionKind(layers=layers, num_kv_heads=self.num_kv_heads, head_dim=self.head_dim, rope=self.rope),)

    def of_kind(self, kind: AttentionKind) -> DecoderConfig:
        """The same with another kind of attention as its own."""
        return replace(self, num_kv_heads=kind.num_kv_heads, head_dim=kind.head_dim, rope=kind.rope)

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
