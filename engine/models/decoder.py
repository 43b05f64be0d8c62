"""One decoder for the Llama-like families, over packed tokens.

It knows nothing of phases or sequences: a batch brings ids and positions, an AttentionBackend brings the cache and the
mask. The families differ by the traits of `DecoderConfig`, never by name.

Weights are plain objects, not torch modules: at tiny sizes the framework's bookkeeping would cost as much as the
arithmetic.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from engine.attention.base import AttentionBackend
from engine.attention.packed_pass import ForwardBatch
from engine.models.adapter import DraftAdapter
from engine.models.decoder_config import DecoderConfig
from engine.models.divided.share import cut_targets, share_of
from engine.models.elementwise import Elementwise
from engine.models.layer import Layer
from engine.models.linear.base import Linear, SharedTarget, Target, TensorTarget
from engine.models.linear.dense import DenseLinear
from engine.models.linear.storages import FLOAT_STORAGES, LINEARS, Storage
from engine.models.rope import RotaryTable
from engine.ranks.group import ALONE, RankGroup


class Decoder:
    """The decoder's weights and its forward. Weights are uninitialised until a loader fills `targets()`."""

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
        """config: of the whole model. num_positions: positions below it may occur in a batch. storage: of the matrices;
        None: dense. group: the ranks that share the model; this is one rank's share. Raises ModelLoadError where they
        cannot share it evenly.

        On the device `meta` it takes no memory: enough to count its parameters and the work of its passes.
        """
        self.whole_config = config
        """Of the model; `config` is that of this rank's share."""
        self.config = config = share_of(config, group)
        self.group = group
        self.adapter = adapter
        self.dtype = dtype
        self.device = device
        self.storage = storage or Storage()
        # By rows: they are looked up.
        self.embedding = torch.empty((config.vocab_size, config.hidden_size), dtype=dtype, device=device)
        self.head = self._make_head()
        self.norm = torch.empty(config.hidden_size, dtype=dtype, device=device)
        self.layers = [self._make_layer(index) for index in range(config.num_layers)]
        self.draft_layers = self.layers
        """What multiplies in passes that only draft: the layers, or their copies in a narrower storage."""
        if self.storage.draft is not None:
            self.draft_layers = [layer.copy_in(self.storage.draft, config, dtype, device) for layer in self.layers]
        self.elementwise = Elementwise(config.rms_norm_eps, dtype, device)
        self.rope = RotaryTable(config.rope, config.head_dim, num_positions, dtype, device)

    def _make_layer(self, index: int) -> Layer:
        return Layer(self.config, self.dtype, self.device, self.adapter, self.storage.layers, index, self.group)

    def _make_head(self) -> Linear:
        parts = {"lm_head": self.config.vocab_size}
        if self.shares_head:
            return DenseLinear(parts, self.embedding)
        return LINEARS[self.storage.head](parts, self.config.hidden_size, self.dtype, self.device, False)

    @property
    def shares_head(self) -> bool:
        """Whether the head is the embedding's own memory: one that is tied, and not quantized.

        A packed copy of a tied head would be faster, and double the memory of the largest matrix; a quantized one is
        smaller than what it replaces in a pass.
        """
        return self.config.tied_head and self.storage.head in FLOAT_STORAGES

    def targets(self) -> dict[str, Target]:
        """Every tensor that a checkpoint must bring, under transformers' Llama-like names."""
        embedding: Target = TensorTarget(self.embedding)
        if self.config.tied_head and not self.shares_head:
            embedding = SharedTarget(embedding, *self.head.targets().values())
        named = {"embed_tokens.weight": embedding, "norm.weight": TensorTarget(self.norm)}
        if not self.config.tied_head:
            named |= self.head.targets()
        for index, (layer, draft) in enumerate(zip(self.layers, self.draft_layers, strict=True)):
            found = layer.targets()
            if draft is not layer:
                found |= {name: SharedTarget(found[name], other) for name, other in draft.matrix_targets().items()}
            named |= {f"layers.{index}.{name}": target for name, target in found.items()}
        return self._of_whole(named)

    def _of_whole(self, targets: dict[str, Target]) -> dict[str, Target]:
        """The same targets, such that they take their part of the whole model's tensors."""
        return targets if self.group.size == 1 else cut_targets(targets, self.whole_config, self.group)

    def adapter_targets(self) -> dict[str, Target]:
        """Every tensor that the draft adapter's checkpoint must bring; empty without one."""
        found = {
            f"layers.{index}.{name}": target
            for index, layer in enumerate(self.layers)
            for name, target in layer.adapter_targets().items()
        }
        return self._of_whole(found)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The weights as dense tensors, under the names of `targets()`; of a share, its parts of them."""
        return {name: target.values() for name, target in self.targets().items()}

    @property
    def row_linears(self) -> tuple[Linear, ...]:
        """The matrices that every row of logits is multiplied with."""
        return (self.head,)

    @property
    def num_parameters(self) -> int:
        """Parameters of the whole model without its draft adapter."""
        return sum(math.prod(target.shape) for target in self.targets().values())

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights as they are stored: the embedding (a head that is the same memory once), the head, the
        layers with their draft adapters, the narrower copies that draft."""
        tensors = [self.embedding, self.norm, *(norm for layer in self.layers for norm in layer.norms)]
        linears = [matrix for layer in self.layers for matrix in (*layer.linears, *layer.adapter_linears)]
        if not self.shares_head:
            linears.append(self.head)
        experts = [layer.mlp.experts for layer in self.layers]
        if self.draft_layers is not self.layers:
            linears += [matrix for layer in self.draft_layers for matrix in layer.linears]
            experts += [layer.mlp.experts for layer in self.draft_layers]
        held = sum(tensor.nbytes for tensor in tensors) + sum(linear.num_bytes for linear in linears)
        return held + sum(some.num_bytes for some in experts if some is not None)

    def forward(
        self, batch: ForwardBatch, attention: AttentionBackend, elementwise: Elementwise | None = None
    ) -> torch.Tensor:
        """Returns the final hidden states, normalised: [T, hidden_size].

        elementwise: None: the decoder's own, which are torch's operations.
        The caller has called `attention.prepare(batch)`, and runs this under torch.inference_mode.
        """
        q_dim = self.config.q_dim
        rotation = self.rope.rows(batch.positions)
        drafting = None
        if self.adapter is not None and batch.draft_tokens is not None:
            drafting = batch.draft_tokens * self.adapter.scale  # [T, 1]
        elementwise = elementwise or self.elementwise
        norm = elementwise.norm
        hidden = self._embed(batch.token_ids)
        for index, layer in enumerate(self.draft_layers if batch.only_drafts else self.layers):
            q, k, v = layer.project(norm(hidden, layer.input_norm), rotation, elementwise, drafting)
            context = attention.forward(q, k, v, index).reshape(-1, q_dim)
            layer.add_attended(hidden, context, drafting)
            layer.add_mlp(hidden, norm(hidden, layer.mlp_norm), elementwise, drafting)
        return norm(hidden, self.norm)

    def _embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[T] -> [T, hidden_size]"""
        if self.group.size == 1:
            return F.embedding(token_ids, self.embedding)
        rows = token_ids - self.first_token
        elsewhere = (rows < 0) | (rows >= len(self.embedding))
        hidden = F.embedding(rows.masked_fill_(elsewhere, 0), self.embedding)
        return self.group.sum(hidden.masked_fill_(elsewhere[:, None], 0))

    @property
    def first_token(self) -> int:
        """The first token id of this rank's part of the vocabulary."""
        return self.group.rank * self.config.vocab_size

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: [R, hidden_size], the rows to predict from. Returns [R, vocab_size] of the model's dtype: of a share,
        those of its part of the vocabulary."""
        return self.head(hidden)
