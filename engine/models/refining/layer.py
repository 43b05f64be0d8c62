"""A layer of a decoder with canvases: every part of it is normed before and after, and it ends with a factor."""

from __future__ import annotations

import torch

from engine.models.decoder_config import AttentionKind, DecoderConfig
from engine.models.elementwise import Elementwise
from engine.models.layer import Layer
from engine.models.linear.base import Target, TensorTarget
from engine.models.linear.storages import LINEARS
from engine.models.refining.mixture import ParallelMLP
from engine.models.rope import Rotation


class CanvasLayer(Layer):
    """A layer that encodes text and refines canvases. The two differ by the factor of its result alone."""

    mlp: ParallelMLP

    def __init__(
        self,
        config: DecoderConfig,
        kind: AttentionKind,
        dtype: torch.dtype,
        device: torch.device,
        storage: str,
    ) -> None:
        """storage: of the matrices; a key of LINEARS."""
        self._kind = kind
        super().__init__(config.of_kind(kind), dtype, device, None, storage)
        self.mlp_norm = self.mlp.norms["shared_in"]
        self._value_ones = torch.ones(kind.head_dim, dtype=dtype, device=device)
        self.attention_out_norm = torch.empty(config.hidden_size, dtype=dtype, device=device)
        self.mlp_out_norm = torch.empty(config.hidden_size, dtype=dtype, device=device)
        self.text_factor = torch.empty(1, dtype=dtype, device=device)
        self.canvas_factor = torch.empty(1, dtype=dtype, device=device)

    def _make_matrices(self, config: DecoderConfig, dtype: torch.dtype, device: torch.device, storage: str) -> None:
        make, hidden, kv_dim = LINEARS[storage], config.hidden_size, config.kv_dim
        parts = {"q": config.q_dim, "k": kv_dim} | ({} if self._kind.values_are_keys else {"v": kv_dim})
        self.qkv = make(parts, hidden, dtype, device, False)
        self.output = make({"o": hidden}, config.q_dim, dtype, device, False)
        if config.experts is None:
            raise ValueError("such a layer has experts")
        norms = Elementwise(config.rms_norm_eps, dtype, device)
        self.mlp = ParallelMLP(config.experts, hidden, dtype, device, storage, norms)

    def project(
        self, x: torch.Tensor, rotation: Rotation, elementwise: Elementwise, drafting: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See Layer. Values are normed, without weights. Nothing drafts."""
        num_heads, num_kv_heads = self._heads
        fused = self.qkv(x).view(len(x), -1, self._head_dim)
        q, k, v = fused[:, :num_heads], fused[:, num_heads : num_heads + num_kv_heads], fused[:, -num_kv_heads:]
        norm = elementwise.norm
        if self.q_norm is None or self.k_norm is None:
            raise ValueError("queries and keys of such a layer are normed")
        qk = torch.cat((norm(q, self.q_norm), norm(k, self.k_norm)), dim=1)
        return *elementwise.rotate(qk, num_heads, rotation), norm(v, self._value_ones)

    def finish(
        self, state: torch.Tensor, context: torch.Tensor, on_canvas: torch.Tensor | None, elementwise: Elementwise
    ) -> torch.Tensor:
        """What follows attention. state: [T, hidden_size], as the layer began; context: [T, q_dim].

        on_canvas: [T, 1] bool, the tokens that belong to canvases; None: there are none. Returns the next state.
        """
        norm = elementwise.norm
        state = state + norm(self.output(context), self.attention_out_norm)
        fed = torch.zeros_like(state)
        self.mlp.add_to(fed, state, elementwise)
        state = state + norm(fed, self.mlp_out_norm)
        if on_canvas is None:
            return state.mul_(self.text_factor)
        return state.mul_(torch.where(on_canvas, self.canvas_factor, self.text_factor))

    @property
    def norms(self) -> tuple[torch.Tensor, ...]:
        """See Layer."""
        others = [norm for name, norm in self.mlp.norms.items() if name != "shared_in"]
        return *super().norms, self.attention_out_norm, self.mlp_out_norm, *others

    def targets(self) -> dict[str, Target]:
        """See Layer. Norms have the names of Gemma's layers, and the factors `layer_scalar` and `text_scalar`."""
        found = super().targets()
        found |= {
            "post_attention_layernorm.weight": TensorTarget(self.attention_out_norm),
            "pre_feedforward_layernorm.weight": TensorTarget(self.mlp_norm),
            "post_feedforward_layernorm.weight": TensorTarget(self.mlp_out_norm),
            "post_feedforward_layernorm_1.weight": TensorTarget(self.mlp.norms["shared_out"]),
            "pre_feedforward_layernorm_2.weight": TensorTarget(self.mlp.norms["experts_in"]),
            "post_feedforward_layernorm_2.weight": TensorTarget(self.mlp.norms["experts_out"]),
            "layer_scalar": TensorTarget(self.canvas_factor),
            "text_scalar": TensorTarget(self.text_factor),
        }
        return found
