"""The network in its training form: Llama-like, tied head, an arbitrary mask, the published layout's names."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Shape:
    """The sizes of the network."""

    vocab_size: int
    hidden_size: int = 192
    intermediate_size: int = 512
    num_layers: int = 6
    num_heads: int = 6
    num_kv_heads: int = 2
    head_dim: int = 32
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


Rope = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines, each [rows, length, 1, head_dim / 2]."""


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.num_heads * shape.head_dim
        kv_width = shape.num_kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(width, shape.hidden_size, bias=False)

    def forward(self, x: torch.Tensor, rope: Rope, bias: torch.Tensor, clean: int) -> torch.Tensor:
        rows, length, _ = x.shape
        split = (rows, length, -1, self.shape.head_dim)
        q = _rotate(self.q_proj(x).view(split), rope).transpose(1, 2)
        k = _rotate(self.k_proj(x).view(split), rope).transpose(1, 2)
        v = self.v_proj(x).view(split).transpose(1, 2)
        groups = self.shape.num_heads // self.shape.num_kv_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        bias = bias.to(q.dtype)
        # Clean places see clean places only: a quarter of the scores need not be computed.
        mixed = F.scaled_dot_product_attention(
            q[:, :, :clean], k[:, :, :clean], v[:, :, :clean], attn_mask=bias[:, :, :clean, :clean]
        )
        if clean < length:
            noised = F.scaled_dot_product_attention(q[:, :, clean:], k, v, attn_mask=bias[:, :, clean:])
            mixed = torch.cat((mixed, noised), dim=2)
        output: torch.Tensor = self.o_proj(mixed.transpose(1, 2).reshape(rows, length, -1))
        return output


def _rotate(x: torch.Tensor, rope: Rope) -> torch.Tensor:
    cos, sin = rope
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class Mlp(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return output


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.mlp = Mlp(shape)

    def forward(self, x: torch.Tensor, rope: Rope, bias: torch.Tensor, clean: int) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, bias, clean)
        output: torch.Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return output


class Network(nn.Module):
    """Token ids, positions [rows, length] and a mask to hidden states; `logits` applies the head."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                std = 0.02 if "embed" in name else parameter.shape[1] ** -0.5 * 0.5
                nn.init.normal_(parameter, std=std, generator=generator)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(parameter)  # every layer starts as the identity

    def forward(
        self, token_ids: torch.Tensor, positions: torch.Tensor, visible: torch.Tensor, clean: int
    ) -> torch.Tensor:
        """[rows, length, hidden]; `visible` is bool [rows, 1, length, length].

        The first `clean` places see only each other.
        """
        half = self.shape.head_dim // 2
        frequencies = self.shape.rope_theta ** (-torch.arange(half, dtype=torch.float32) / half)
        angles = positions[..., None].float() * frequencies
        rope = (angles.cos()[:, :, None], angles.sin()[:, :, None])
        bias = torch.zeros(visible.shape).masked_fill(~visible, -1e9)
        x = self.embed_tokens(token_ids)
        for layer in self.layers:
            x = layer(x, rope, bias, clean)
        output: torch.Tensor = self.norm(x)
        return output

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden, self.embed_tokens.weight)
