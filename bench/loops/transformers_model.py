"""transformers' own model on the weights that the engine has loaded: what the loops of this package run.

Used as a competent user would: sdpa attention, a KV cache, inference mode, no logits but those needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    Ministral3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from engine.engine import Engine
from engine.errors import ConfigError
from engine.models.decoder import Decoder
from engine.models.decoder_config import DecoderConfig

Cache = Any
"""transformers' DynamicCache."""


@dataclass(frozen=True)
class Limits:
    """The fields of a request besides its prompt."""

    max_tokens: int
    block_length: int
    threshold: float


class TransformersModel:
    """transformers' own module on the engine's weights. Shapes: n rows, q query tokens, V vocabulary."""

    def __init__(self, engine: Engine) -> None:
        """Raises ConfigError for a model that no module of transformers expresses."""
        decoder, self.info = engine.runner.decoder, engine.info
        self.device, self.dtype = engine.device, decoder.dtype
        config = module_config(decoder.config)
        with engine.device:
            self.model: Any = make_model(config, decoder.dtype)
        self.model.load_state_dict(_state(decoder), strict=not decoder.config.tied_head, assign=True)
        self.model.tie_weights()  # the embedding has been replaced
        self.model.eval()
        self._banned = torch.tensor(self.info.banned_token_ids, device=self.device)
        self._drafting = _merged_adapter(decoder)

    def new_cache(self) -> Cache:
        """An empty KV cache."""
        return DynamicCache(config=self.model.config)

    def causal(
        self, ids: torch.Tensor, cache: Cache, keep: int = 0, mask: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Appends ids [n, q] to the cache; row i predicts the token after ids[i]. Returns logits [n, keep or q, V].

        mask: [n, cached + q] int, 0 where a position holds padding. positions: [n, q], where they do not just go on.
        """
        output = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=keep
        )
        return self._ban(output.logits)

    def canvas(
        self, ids: torch.Tensor, cache: Cache, drafting: bool = False, visible: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Logits [n, q, V] of ids [n, q], each seeing the cache and all the others; the cache is left as it was.

        visible: [n, 1, 1, cached + q], added to the scores: -inf where a position holds padding.
        """
        if visible is None:
            cached = cache.get_seq_length()
            visible = torch.zeros((1, 1, 1, cached + ids.shape[1]), dtype=self.dtype, device=self.device)
        with self._adapted() if drafting else _as_it_is():
            output = self.model(input_ids=ids, attention_mask=visible, position_ids=positions, past_key_values=cache)
        cache.crop(-ids.shape[1])
        return self._ban(output.logits)

    def encode(self, ids: torch.Tensor, cache: Cache, block_length: int) -> torch.Tensor:
        """Appends ids [1, q] to the cache, each seeing to the end of its own block, or of ids. Returns the last [1, V].

        The cache ends with a block.
        """
        places = torch.arange(ids.shape[1], device=self.device)
        hidden = places[None] >= (places[:, None] // block_length + 1) * block_length
        visible = torch.zeros(
            (ids.shape[1], cache.get_seq_length() + ids.shape[1]), dtype=self.dtype, device=self.device
        )
        visible[:, visible.shape[1] - ids.shape[1] :].masked_fill_(hidden, float("-inf"))
        output = self.model(input_ids=ids, attention_mask=visible[None, None], past_key_values=cache, logits_to_keep=1)
        return self._ban(output.logits[:, -1])

    def whole(self, ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Logits [1, k, V] at rows [k] of a text [1, q] whose tokens all see each other; no cache."""
        visible = torch.zeros((1, 1, ids.shape[1], ids.shape[1]), dtype=self.dtype, device=self.device)
        output = self.model(input_ids=ids, attention_mask=visible, use_cache=False, logits_to_keep=rows)
        return self._ban(output.logits)

    def tensor(self, ids: list[int]) -> torch.Tensor:
        """The ids as a tensor [1, len(ids)]."""
        return torch.tensor([ids], device=self.device)

    def ends(self, answer: list[int], limits: Limits) -> bool:
        """Whether the answer is complete: it ends with an end token, or has max_tokens tokens."""
        return answer[-1] in self.info.end_token_ids or len(answer) >= limits.max_tokens

    def cut(self, answer: list[int], limits: Limits) -> list[int]:
        """The answer up to its first end token, which is kept, or to max_tokens."""
        answer = answer[: limits.max_tokens]
        for i, token in enumerate(answer):
            if token in self.info.end_token_ids:
                return answer[: i + 1]
        return answer

    def _ban(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill_(-1, self._banned, float("-inf"))

    @contextmanager
    def _adapted(self) -> Iterator[None]:
        """With the draft adapter merged into the output projections, for models that have one."""
        projections = [layer.self_attn.o_proj for layer in self.model.model.layers] if self._drafting else []
        plain = [projection.weight.data for projection in projections]
        for projection, merged in zip(projections, self._drafting, strict=True):
            projection.weight.data = merged
        try:
            yield
        finally:
            for projection, weight in zip(projections, plain, strict=True):
                projection.weight.data = weight


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


def make_model(config: PretrainedConfig, dtype: torch.dtype) -> Any:
    """transformers' module for a config, its weights random."""
    make: Any = AutoModelForCausalLM.from_config  # untyped
    return make(config, dtype=dtype, attn_implementation="sdpa")


def module_config(config: DecoderConfig) -> PretrainedConfig:
    """The decoder's shape, as the module of transformers that has its traits names it. Raises ConfigError for none."""
    rope = config.rope
    parameters: dict[str, Any] = {"rope_type": rope.kind, "rope_theta": rope.theta, **rope.parameters}
    shape: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_positions,
        "rope_parameters": parameters,
        "tie_word_embeddings": config.tied_head,
        "sliding_window": None,
        "pad_token_id": None,
    }
    if config.experts is not None or rope.rotary_dim is not None:
        raise ConfigError("There is no plain transformers loop for expert layers or partial rotation.")
    if config.qk_norm and config.qkv_bias:
        raise ConfigError("There is no plain transformers loop for a decoder with both norms and biases of q and k.")
    if config.qk_norm:
        return Qwen3Config(**shape)
    if config.qkv_bias:
        return Qwen2Config(**shape)
    return _ministral_config(config, shape, parameters)


def _ministral_config(config: DecoderConfig, shape: dict[str, Any], parameters: dict[str, Any]) -> PretrainedConfig:
    """Ministral-3's, which is a Llama where queries are not scaled."""
    rope = config.rope
    if rope.query_scaling is not None:
        parameters["llama_4_scaling_beta"] = rope.query_scaling.beta
        parameters.setdefault("original_max_position_embeddings", rope.query_scaling.original_max_positions)
    made = Ministral3Config(**shape)
    # Without query scaling the module still reads its parameters.
    stored: Any = made.rope_parameters
    stored.setdefault("llama_4_scaling_beta", 0.0)
    stored.setdefault("original_max_position_embeddings", 1)
    return made


def _state(decoder: Decoder) -> dict[str, torch.Tensor]:
    """The weights under transformers' names, and in the layout that its loader gives them: row by row."""
    return {
        name if name == "lm_head.weight" else f"model.{name}": tensor.contiguous()
        for name, tensor in decoder.tensors().items()
    }


def _merged_adapter(decoder: Decoder) -> list[torch.Tensor]:
    """By layer: the output projection with the draft adapter added. Empty without one."""
    if decoder.adapter is None:
        return []
    tensors = decoder.tensors() | {name: target.values() for name, target in decoder.adapter_targets().items()}
    merged = []
    for index in range(len(decoder.layers)):
        weight, down, up = (
            tensors[f"layers.{index}.self_attn.o_proj.{name}weight"] for name in ("", "lora_A.", "lora_B.")
        )
        merged.append((weight + decoder.adapter.scale * up @ down).contiguous())
    return merged
