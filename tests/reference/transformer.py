"""The reference model: transformers' own Ministral-3 module and cache, with a published-layout checkpoint's weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import DynamicCache, Ministral3Config, Ministral3ForCausalLM

SHAPE_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings",
)  # fmt: skip


class ReferenceModel:
    """One sequence at a time. The cache holds what causal passes have written; bidirectional passes leave no trace."""

    def __init__(self, directory: Path, dtype: torch.dtype = torch.float64) -> None:
        values = json.loads((directory / "config.json").read_text())
        generation = json.loads((directory / "generation_config.json").read_text())
        ends = [values.get("eos_token_id"), generation.get("eos_token_id")]
        flat = [token for end in ends for token in (end if isinstance(end, list) else [end])]
        self.mask_id: int = values["mask_token_id"]
        self.end_ids = frozenset(token for token in flat if token is not None)
        self.banned_ids = frozenset({self.mask_id, values["pad_token_id"]})
        shape = {key: values[key] for key in SHAPE_KEYS}
        config = Ministral3Config(
            **shape, rope_parameters=values["rope_parameters"], sliding_window=None, pad_token_id=None
        )
        # Plain RoPE has no query scaling; the module reads its parameters all the same.
        neutral = {"llama_4_scaling_beta": 0.0, "original_max_position_embeddings": 1}
        config.rope_parameters = neutral | values["rope_parameters"]
        config._attn_implementation = "sdpa"
        self.model = Ministral3ForCausalLM(config).eval()
        self.model.to(dtype=dtype)
        tensors = {_module_name(name): tensor for name, tensor in load_file(directory / "model.safetensors").items()}
        missing, unexpected = self.model.load_state_dict(tensors, strict=False)
        tied = ["lm_head.weight"] if values["tie_word_embeddings"] else []
        assert missing == tied, missing
        assert not unexpected, unexpected
        self._adapter = _read_adapter(directory / "linear_spec_lora", dtype)
        self.reset()

    def reset(self) -> None:
        """Forgets the sequence."""
        self._cache = DynamicCache(config=self.model.config)

    @property
    def num_cached(self) -> int:
        return int(self._cache.get_seq_length())

    def crop(self, length: int) -> None:
        """Keeps the first `length` positions of the cache."""
        if self.num_cached > length:
            self._cache.crop(length - self.num_cached)
        assert self.num_cached == length

    @torch.no_grad()
    def causal(self, ids: list[int]) -> np.ndarray:
        """Appends tokens to the cache. Returns logits [len(ids), V]: row i predicts the token after ids[i]."""
        return self._logits(ids, None)

    @torch.no_grad()
    def bidirectional(self, ids: list[int], *, drafting: bool = False) -> np.ndarray:
        """Every token sees the cache and all of `ids`. Returns logits [len(ids), V]: row i predicts position i itself.

        drafting: with the draft adapter, where the checkpoint has one.
        """
        before = self.num_cached
        visible = torch.zeros(1, 1, len(ids), before + len(ids), dtype=self.model.dtype)
        if drafting:
            with self._adapted():
                logits = self._logits(ids, visible)
        else:
            logits = self._logits(ids, visible)
        self.crop(before)
        return logits

    def _logits(self, ids: list[int], mask: torch.Tensor | None) -> np.ndarray:
        positions = torch.arange(self.num_cached, self.num_cached + len(ids))[None]
        output = self.model(
            torch.tensor([ids]),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        rows: np.ndarray = output.logits[0].double().numpy()
        return rows

    @contextmanager
    def _adapted(self) -> Iterator[None]:
        """With the adapter's product added to every output projection."""
        projections = [layer.self_attn.o_proj for layer in self.model.model.layers]
        plain = [projection.weight.data for projection in projections]
        for i, delta in self._adapter.items():
            projections[i].weight.data = plain[i] + delta
        try:
            yield
        finally:
            for projection, weight in zip(projections, plain, strict=True):
                projection.weight.data = weight


def _module_name(name: str) -> str:
    if name == "diffusion_head.weight":
        return "lm_head.weight"
    return name.replace("encoder.", "model.", 1)


def _read_adapter(directory: Path, dtype: torch.dtype) -> dict[int, torch.Tensor]:
    """By layer: alpha / r * B A, what the adapter adds to o_proj."""
    if not directory.is_dir():
        return {}
    settings = json.loads((directory / "adapter_config.json").read_text())
    tensors = load_file(directory / "adapter_model.safetensors")
    scale = settings["lora_alpha"] / settings["r"]
    deltas = {}
    for i in range(len(tensors) // 2):
        prefix = f"base_model.model.encoder.layers.{i}.self_attn.o_proj."
        up, down = tensors[prefix + "lora_B.weight"].to(dtype), tensors[prefix + "lora_A.weight"].to(dtype)
        deltas[i] = scale * up @ down
    return deltas
