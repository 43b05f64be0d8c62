"""The reference model of families that see the whole text: transformers' own module, its mask hiding nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import DynamicCache

from tests.reference.bidirectional.checkpoints import module_of, published_names
from tests.reference.mixtures.names import module_state


class WholeModel:
    """The reference model. It has no cache but the one that an approximate loop asks for."""

    def __init__(self, directory: Path, dtype: torch.dtype = torch.float64) -> None:
        config = json.loads((directory / "config.json").read_text())
        self.mask_id: int = config["mask_token_id"]
        self.end_ids = frozenset({config["eos_token_id"]})
        self.banned_ids = frozenset({self.mask_id})
        self.shift = int(config["architectures"] == ["DreamModel"])
        self.module = module_of(config)
        stored = load_file(directory / "model.safetensors")
        self.module.load_state_dict(self._own_names(config, stored))
        self.module.to(dtype=dtype)

    def _own_names(self, config: dict[str, Any], stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if config["architectures"] == ["LLaDAMoEModelLM"]:
            return module_state(stored)
        own = published_names(config, {name: torch.empty(0) for name in self.module.state_dict()})
        back = dict(zip(own, self.module.state_dict(), strict=True))
        return {back[name]: tensor for name, tensor in stored.items()}

    def reset(self) -> None:
        """Nothing is kept from one sequence to the next."""

    @torch.no_grad()
    def logits(self, ids: list[int], start: int = 0, frozen: DynamicCache | None = None) -> np.ndarray:
        """[len(ids), V] for the tokens at `start` and after it, which see each other and all that is frozen."""
        held = 0 if frozen is None else int(frozen.get_seq_length())
        cache = DynamicCache(config=self.module.config)
        if frozen is not None:
            for i, layer in enumerate(frozen.layers):
                cache.update(layer.keys, layer.values, i)
        output = self.module(
            torch.tensor([ids]), position_ids=torch.arange(start, start + len(ids))[None], past_key_values=cache,
            attention_mask=torch.zeros(1, 1, len(ids), held + len(ids), dtype=self.module.dtype), use_cache=True,
        )  # fmt: skip
        self.written = cache
        rows: np.ndarray = output.logits[0].double().numpy()
        return rows

    def freeze(self, positions: list[int]) -> DynamicCache:
        """K and V of these positions as the last pass, of a whole text, wrote them."""
        frozen = DynamicCache(config=self.module.config)
        for i, layer in enumerate(self.written.layers):
            frozen.update(layer.keys[:, :, positions], layer.values[:, :, positions], i)
        return frozen
