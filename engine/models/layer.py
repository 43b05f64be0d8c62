"""One layer of the decoder: its weights, and the parts of its forward on either side of attention."""

from __future__ import annotations

from copy import copy
from functools import partial

import torch

from engine.models.adapter import DraftAdapter, LayerUpdates
from engine.models.decoder_config import DecoderConfig
from engine.models.divided.linears import summed
from engine.models.elementwise import Elementwise
from engine.models.linear.base import Linear, PermutedTarget, Target, TensorTarget
from engine.models.linear.storages import LINEARS
from engine.models.mlp.gated import GatedMLP, projections
from engine.models.mlp.mixture import MixtureMLP
from engine.models.rope import Rotation
from engine.ranks.group import ALONE, RankGroup

QKV, MLP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj", "down_proj")


class Layer:
    """One layer's weights, allocated but not initialised. q, k and v are one matrix and one product."""

    def __init__(
        self,
        config: DecoderConfig,
        dtype: torch.dtype,
        device: torch.device,
        adapter: DraftAdapter | None,
        storage: str = "dense",
        index: int = 0,
        group: RankGroup = ALONE,
    ) -> None:
        """storage: of the matrices; a key of LINEARS. Those of a draft adapter are always dense. index: the layer's.

        group: the ranks that share the layer; config is the shape of one share.
        """
        vector = partial(torch.empty, dtype=dtype, device=device)
        hidden = config.hidden_size
        self._index = index
        self._group = group
        self._order = config.rope.order(config.head_dim)
        self._heads = (config.num_heads, config.num_kv_heads)
        self._head_dim = config.head_dim
        self.input_norm = vector(hidden)
        self.q_norm = vector(config.head_dim) if config.qk_norm else None
        self.k_norm = vector(config.head_dim) if config.qk_norm else None
        self.updates = LayerUpdates(adapter, _shapes(config), dtype, device, group)
        self._updated = tuple(self.updates.touches(names) for names in (QKV, ("o_proj",), MLP))
        self._qkv_sizes = dict(zip(QKV, (config.q_dim, config.kv_dim, config.kv_dim), strict=True))
        self.mlp_norm = vector(hidden)
        self._make_matrices(config, dtype, device, storage)

    def _make_matrices(self, config: DecoderConfig, dtype: torch.dtype, device: torch.device, storage: str) -> None:
        make, hidden, q_dim, kv_dim = LINEARS[storage], config.hidden_size, config.q_dim, config.kv_dim
        self.qkv = make({"q": q_dim, "k": kv_dim, "v": kv_dim}, hidden, dtype, device, config.qkv_bias)
        self.output = summed(make({"o": hidden}, q_dim, dtype, device, False), self._group)
        self.mlp: GatedMLP | MixtureMLP
        if config.experts is not None and self._index >= config.experts.num_dense_layers:
            self.mlp = MixtureMLP(config.experts, hidden, dtype, device, storage, self._group)
        else:
            self.mlp = GatedMLP(hidden, config.intermediate_size, dtype, device, storage, self._group)

    def copy_in(self, storage: str, config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> Layer:
        """This layer with matrices of another storage, not initialised; all the rest of it is the same memory."""
        other = copy(self)
        other._make_matrices(config, dtype, device, storage)
        return other

    def project(
        self, x: torch.Tensor, rotation: Rotation, elementwise: Elementwise, drafting: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x: [T, hidden_size], normalised. Returns rotated q [T, num_heads, head_dim], rotated k and v
        [T, num_kv_heads, head_dim]; all may be strided views.

        drafting: here and below [T, 1], the scale of the draft adapter's updates, 0 where it does not apply; or None.
        """
        num_heads, num_kv_heads = self._heads
        num_qk = num_heads + num_kv_heads
        products = self.qkv(x)
        if drafting is not None and self._updated[0]:
            self.updates.add_to(products, x, drafting, self._qkv_sizes)
        fused = products.view(-1, num_qk + num_kv_heads, self._head_dim)
        qk, v = fused.split_with_sizes((num_qk, num_kv_heads), dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = qk.split_with_sizes(self._heads, dim=1)
            norm = elementwise.norm
            qk = torch.cat((norm(q, self.q_norm), norm(k, self.k_norm)), dim=1)
        return *elementwise.rotate(qk, num_heads, rotation), v

    def add_attended(self, total: torch.Tensor, context: torch.Tensor, drafting: torch.Tensor | None) -> None:
        """Adds the output projection of what attention gave, in place. total: [T, hidden_size]; context: [T, q_dim]."""
        self.output.add_to(total, context)
        if drafting is not None and self._updated[1]:
            self.updates.add_to(total, context, drafting, {"o_proj": total.shape[1]})

    def add_mlp(
        self, total: torch.Tensor, x: torch.Tensor, elementwise: Elementwise, drafting: torch.Tensor | None
    ) -> None:
        """Adds the MLP of x to total, in place. Both: [T, hidden_size]."""
        if drafting is not None and self._updated[2] and isinstance(self.mlp, GatedMLP):
            self.mlp.add_updated_to(total, x, elementwise, self.updates, drafting)
        else:
            self.mlp.add_to(total, x, elementwise)

    @property
    def linears(self) -> tuple[Linear, ...]:
        """The matrices that every pass reads: without those of a draft adapter and of experts."""
        return self.qkv, self.output, *self.mlp.linears

    @property
    def adapter_linears(self) -> tuple[Linear, ...]:
        """The matrices of the draft adapter; none without one."""
        return self.updates.linears

    @property
    def norms(self) -> tuple[torch.Tensor, ...]:
        """The weights of the norms."""
        norms = (self.input_norm, self.mlp_norm, self.q_norm, self.k_norm)
        return tuple(norm for norm in norms if norm is not None)

    def targets(self) -> dict[str, Target]:
        """The tensors of a checkpoint that fill it, under the names transformers gives a Llama-like layer."""
        norms = {"input_layernorm": self.input_norm, "post_attention_layernorm": self.mlp_norm}
        if self.q_norm is not None and self.k_norm is not None:
            norms |= {"self_attn.q_norm": self.q_norm, "self_attn.k_norm": self.k_norm}
        found: dict[str, Target] = {f"{name}.weight": TensorTarget(norm) for name, norm in norms.items()}
        return self._in_published_order(found) | self.matrix_targets()

    def matrix_targets(self) -> dict[str, Target]:
        """Those of `targets` that fill matrices and their biases."""
        attention = projections({**self.qkv.targets(), **self.output.targets()})
        return {
            **self._in_published_order({f"self_attn.{name}": target for name, target in attention.items()}),
            **{f"mlp.{name}": target for name, target in self.mlp.targets().items()},
        }

    def _in_published_order(self, targets: dict[str, Target]) -> dict[str, Target]:
        """The same targets, q's and k's such that they take their rows in the order of a checkpoint."""
        if self._order is None:
            return targets
        rows = {name for name in targets if name.startswith(("self_attn.q_", "self_attn.k_")) and "lora_A" not in name}
        return {
            name: PermutedTarget(target, self._order) if name in rows else target for name, target in targets.items()
        }

    def adapter_targets(self) -> dict[str, Target]:
        """The tensors of a draft adapter's checkpoint, under PEFT's names; empty without an adapter."""
        found = self.updates.targets().items()
        named = {f"{'mlp' if name.startswith(MLP) else 'self_attn'}.{name}": target for name, target in found}
        return self._in_published_order(named)


def _shapes(config: DecoderConfig) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of a layer's matrices that an adapter may update, by name."""
    hidden, inner = config.hidden_size, config.intermediate_size
    return {
        "q_proj": (config.q_dim, hidden), "k_proj": (config.kv_dim, hidden), "v_proj": (config.kv_dim, hidden),
        "o_proj": (hidden, config.q_dim), "gate_proj": (inner, hidden), "up_proj": (inner, hidden),
        "down_proj": (hidden, inner),
    }  # fmt: skip
