"""The decoder of models that refine canvases of random tokens (DiffusionGemma).

Text is encoded causally; its KV is all that a canvas sees of it. A canvas is a span that sees itself whole, and whose
tokens enter with what the last denoising step expected in their place: self-conditioning (Chen et al. 2022).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from engine.attention.base import AttentionBackend
from engine.attention.packed_pass import ForwardBatch
from engine.errors import ModelLoadError
from engine.models.adapter import DraftAdapter
from engine.models.decoder import Decoder
from engine.models.decoder_config import CanvasTraits, DecoderConfig
from engine.models.elementwise import Elementwise
from engine.models.layer import Layer
from engine.models.linear.base import Linear, Target, TensorTarget
from engine.models.linear.storages import Storage
from engine.models.mlp.gated import GatedMLP
from engine.models.refining.layer import CanvasLayer
from engine.models.rope import RotaryTable
from engine.ranks.group import ALONE, RankGroup


class CanvasDecoder(Decoder):
    """A Decoder with the traits of `CanvasTraits`."""

    def __init__(
        self,
        config: DecoderConfig,
        *,
        dtype: torch.dtype,
        device: torch.device,
        num_positions: int,
        adapter: DraftAdapter | None = None,
        storage: Storage | None = None,
        group: RankGroup = ALONE,
    ) -> None:
        """See Decoder. There are no draft adapters: nothing drafts. Raises ModelLoadError for several ranks."""
        if group.size > 1:
            raise ModelLoadError("tensor_parallel_size: a model that refines random tokens runs on one rank alone.")
        super().__init__(config, dtype=dtype, device=device, num_positions=num_positions, storage=storage)
        hidden = config.hidden_size
        # In the model's type, as in the published implementation: of bfloat16 it is the nearest number.
        self._embedding_scale = torch.tensor(math.sqrt(hidden), dtype=dtype, device=device)
        self._ones = torch.ones(hidden, dtype=dtype, device=device)
        self._conditioning_norm = torch.empty(hidden, dtype=dtype, device=device)
        activation = "silu" if config.experts is None else config.experts.activation
        self._conditioning = GatedMLP(
            hidden, config.intermediate_size, dtype, device, self.storage.layers, activation=activation
        )
        self._canvas_layers = [layer for layer in self.layers if isinstance(layer, CanvasLayer)]
        self._kind_of = {layer: i for i, kind in enumerate(config.attention_kinds) for layer in kind.layers}
        self._ropes = [
            RotaryTable(kind.rope, kind.head_dim, num_positions, dtype, device) for kind in config.attention_kinds
        ]

    @property
    def traits(self) -> CanvasTraits:
        """Those that make it one of these."""
        if self.config.canvas is None:
            raise ValueError("a CanvasDecoder needs CanvasTraits")
        return self.config.canvas

    def _make_layer(self, index: int) -> Layer:
        kind = next(kind for kind in self.config.attention_kinds if index in kind.layers)
        return CanvasLayer(self.config, kind, self.dtype, self.device, self.storage.layers)

    def targets(self) -> dict[str, Target]:
        """See Decoder. Those of self-conditioning begin with `self_conditioning.`."""
        found = super().targets()
        found["self_conditioning.pre_norm.weight"] = TensorTarget(self._conditioning_norm)
        own = {f"self_conditioning.{name}": target for name, target in self._conditioning.targets().items()}
        return {**found, **own}

    @property
    def row_linears(self) -> tuple[Linear, ...]:
        """See Decoder. The head twice: what it predicts is what its rows are averaged by, for the next step."""
        return *super().row_linears, self.head, *self._conditioning.linears

    @property
    def num_bytes(self) -> int:
        """See Decoder."""
        own = sum(linear.num_bytes for linear in self._conditioning.linears) + self._conditioning_norm.nbytes
        return super().num_bytes + own

    def forward(
        self, batch: ForwardBatch, attention: AttentionBackend, elementwise: Elementwise | None = None
    ) -> torch.Tensor:
        """See Decoder. `batch.canvas` names the tokens of canvases."""
        elementwise = elementwise or self.elementwise
        norm = elementwise.norm
        rotations = [rope.rows(batch.positions) for rope in self._ropes]
        hidden = F.embedding(batch.token_ids, self.embedding) * self._embedding_scale
        on_canvas = None
        if batch.canvas is not None:
            rows, soft = batch.canvas
            told = self._conditioning(norm(soft, self._conditioning_norm), elementwise)
            hidden[rows] = norm(hidden[rows] + told, self._ones)
            on_canvas = torch.zeros((len(hidden), 1), dtype=torch.bool, device=hidden.device)
            on_canvas[rows] = True
        for index, layer in enumerate(self._canvas_layers):
            q, k, v = layer.project(norm(hidden, layer.input_norm), rotations[self._kind_of[index]], elementwise)
            context = attention.forward(q, k, v, index).reshape(len(hidden), -1)
            hidden = layer.finish(hidden, context, on_canvas, elementwise)
        return norm(hidden, self.norm)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: [R, hidden_size]. Returns [R, vocab_size], of float32 at least, within the cap."""
        cap = self.traits.logit_cap
        logits = super().logits(hidden)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).div_(cap).tanh_().mul_(cap)

    def expected_embeddings(self, logits: torch.Tensor) -> torch.Tensor:
        """The mean of the embedding under the distributions of logits [..., V]: [..., hidden_size]."""
        logits = logits.to(self.dtype)
        probabilities = logits.softmax(dim=-1, dtype=torch.promote_types(self.dtype, torch.float32))
        return (probabilities.to(self.dtype) @ self.embedding) * self._embedding_scale
