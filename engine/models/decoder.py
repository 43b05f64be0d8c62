"""One decoder for the Llama-like families, over packed tokens.

It knows nothing of phases or sequences: a batch brings ids and positions, an AttentionBackend brings the cache and the
mask. The families differ by the traits of `DecoderConfig`, never by name.

Weights are plain tensors on plain objects, not torch modules: at tiny sizes the framework's bookkeeping would cost as
much as the arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from engine.attention.base import AttentionBackend
from engine.batch import ForwardBatch
from engine.models.elementwise import Elementwise
from engine.models.rope import RopeConfig, RotaryTable, Rotation


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

    @property
    def q_dim(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        return self.num_kv_heads * self.head_dim


@dataclass(frozen=True, kw_only=True)
class DraftAdapter:
    """A LoRA on every output projection, applied to the rows that draft (Hu et al. 2021)."""

    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def empty_weight(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """An uninitialised weight; a matrix is [outputs, inputs].

    On a CPU a matrix is stored by columns: products of a few rows, which is what decoding is made of, then take as
    little as half the time. GPU libraries are tuned for rows.
    """
    if device.type == "cpu" and len(shape) == 2:
        return torch.empty(shape[::-1], dtype=dtype, device=device).t()
    return torch.empty(shape, dtype=dtype, device=device)


class Layer:
    """One layer's weights, allocated but not initialised. q, k, v and gate, up are fused by rows: one product each."""

    def __init__(
        self, config: DecoderConfig, dtype: torch.dtype, device: torch.device, adapter: DraftAdapter | None
    ) -> None:
        def empty(*shape: int) -> torch.Tensor:
            return empty_weight(shape, dtype, device)

        hidden, qkv_dim = config.hidden_size, config.q_dim + 2 * config.kv_dim
        self.input_norm = empty(hidden)
        self.qkv = empty(qkv_dim, hidden)
        self.qkv_bias = empty(qkv_dim) if config.qkv_bias else None
        self.q_norm = empty(config.head_dim) if config.qk_norm else None
        self.k_norm = empty(config.head_dim) if config.qk_norm else None
        self.output = empty(hidden, config.q_dim)
        self.mlp_norm = empty(hidden)
        self.gate_up = empty(2 * config.intermediate_size, hidden)
        self.down = empty(hidden, config.intermediate_size)
        self.lora_a = empty(adapter.rank, config.q_dim) if adapter else None
        self.lora_b = empty(hidden, adapter.rank) if adapter else None

    def tensors(self, config: DecoderConfig) -> dict[str, torch.Tensor]:
        """Views of the weights under the names transformers gives a Llama-like layer."""
        rows = (config.q_dim, config.kv_dim, config.kv_dim)
        named = {
            "input_layernorm.weight": self.input_norm,
            "self_attn.o_proj.weight": self.output,
            "post_attention_layernorm.weight": self.mlp_norm,
            "mlp.down_proj.weight": self.down,
        }
        for letter, part in zip("qkv", self.qkv.split_with_sizes(rows), strict=True):
            named[f"self_attn.{letter}_proj.weight"] = part
        for name, part in zip(("gate", "up"), self.gate_up.chunk(2), strict=True):
            named[f"mlp.{name}_proj.weight"] = part
        if self.qkv_bias is not None:
            for letter, part in zip("qkv", self.qkv_bias.split_with_sizes(rows), strict=True):
                named[f"self_attn.{letter}_proj.bias"] = part
        if self.q_norm is not None and self.k_norm is not None:
            named |= {"self_attn.q_norm.weight": self.q_norm, "self_attn.k_norm.weight": self.k_norm}
        return named

    def adapter_tensors(self) -> dict[str, torch.Tensor]:
        """The draft adapter's weights under PEFT's names; empty without one."""
        if self.lora_a is None or self.lora_b is None:
            return {}
        prefix = "self_attn.o_proj."
        return {prefix + "lora_A.weight": self.lora_a, prefix + "lora_B.weight": self.lora_b}


class Decoder:
    """The decoder's weights and its forward. Weights are uninitialised until a loader fills `tensors()`."""

    def __init__(
        self,
        config: DecoderConfig,
        *,
        dtype: torch.dtype,
        device: torch.device,
        num_positions: int,
        adapter: DraftAdapter | None = None,
    ) -> None:
        """num_positions: positions below it may occur in a batch."""
        self.config = config
        self.adapter = adapter
        self.dtype = dtype
        self.device = device
        vocabulary = (config.vocab_size, config.hidden_size)
        self.embedding = torch.empty(vocabulary, dtype=dtype, device=device)  # by rows: they are looked up
        self.head = self.embedding if config.tied_head else empty_weight(vocabulary, dtype, device)
        self.norm = torch.empty(config.hidden_size, dtype=dtype, device=device)
        self.layers = [Layer(config, dtype, device, adapter) for _ in range(config.num_layers)]
        self.elementwise = Elementwise(config.rms_norm_eps, dtype, device)
        self.rope = RotaryTable(config.rope, config.head_dim, num_positions, dtype, device)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every weight a checkpoint must bring, as a view to copy into, under transformers' Llama-like names."""
        named = {"embed_tokens.weight": self.embedding, "norm.weight": self.norm}
        if not self.config.tied_head:
            named["lm_head.weight"] = self.head
        for index, layer in enumerate(self.layers):
            named |= {f"layers.{index}.{name}": tensor for name, tensor in layer.tensors(self.config).items()}
        return named

    def adapter_tensors(self) -> dict[str, torch.Tensor]:
        """The same for the draft adapter; empty without one."""
        return {
            f"layers.{index}.{name}": tensor
            for index, layer in enumerate(self.layers)
            for name, tensor in layer.adapter_tensors().items()
        }

    @property
    def num_parameters(self) -> int:
        """Parameters of the model without its draft adapter."""
        return sum(tensor.numel() for tensor in self.tensors().values())

    def forward(
        self, batch: ForwardBatch, attention: AttentionBackend, elementwise: Elementwise | None = None
    ) -> torch.Tensor:
        """Returns the final hidden states, normalised: [T, hidden_size].

        elementwise: None: the decoder's own, which are torch's operations.
        The caller has called `attention.prepare(batch)`, and runs this under torch.inference_mode.
        """
        config = self.config
        rotation = self.rope.rows(batch.positions)
        drafting = None
        if self.adapter is not None and batch.draft_tokens is not None:
            drafting = batch.draft_tokens * self.adapter.scale  # [T, 1]
        elementwise = elementwise or self.elementwise
        norm, silu_mul = elementwise.norm, elementwise.silu_mul
        hidden = F.embedding(batch.token_ids, self.embedding)
        for index, layer in enumerate(self.layers):
            q, k, v = self._project(layer, norm(hidden, layer.input_norm), rotation, elementwise)
            context = attention.forward(q, k, v, index).reshape(-1, config.q_dim)
            hidden.addmm_(context, layer.output.t())
            if drafting is not None and layer.lora_a is not None and layer.lora_b is not None:
                hidden.addmm_(F.linear(context, layer.lora_a) * drafting, layer.lora_b.t())
            gate_up = F.linear(norm(hidden, layer.mlp_norm), layer.gate_up)
            hidden.addmm_(silu_mul(gate_up), layer.down.t())
        return norm(hidden, self.norm)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: [R, hidden_size], the rows to predict from. Returns [R, vocab_size] of the model's dtype."""
        return F.linear(hidden, self.head)

    def _project(
        self, layer: Layer, hidden: torch.Tensor, rotation: Rotation, elementwise: Elementwise
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rotated q [T, num_heads, head_dim], rotated k and v [T, num_kv_heads, head_dim]; all may be strided views."""
        config = self.config
        heads = (config.num_heads, config.num_kv_heads)
        fused = F.linear(hidden, layer.qkv, layer.qkv_bias).view(-1, sum(heads) + config.num_kv_heads, config.head_dim)
        qk, v = fused.split_with_sizes((sum(heads), config.num_kv_heads), dim=1)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = qk.split_with_sizes(heads, dim=1)
            norm = elementwise.norm
            qk = torch.cat((norm(q, layer.q_norm), norm(k, layer.k_norm)), dim=1)
        return *elementwise.rotate(qk, config.num_heads, rotation), v
