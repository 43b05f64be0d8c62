"""WeightNames: a mapping from a family's tensor names to the tensors that the decoder wants, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class WeightNames:
    """How a family's checkpoints name the decoder's tensors (`Decoder.targets`).

    A checkpoint's tensor may hold several of them one below the other, by rows: such a *fused* tensor is mapped to all
    of their names, in order.
    """

    body_prefixes: tuple[str, ...]
    """Prefixes of `embed_tokens.weight`, `layers.N. ...` and `norm.weight`; the published one first."""
    heads: tuple[str, ...]
    """Names of the output head, the published one first."""
    layers: str = "layers"
    """The family's name of the list of layers."""
    body: Mapping[str, str] = field(default_factory=dict)
    """The family's name -> the decoder's, for tensors outside the layers, after the prefix. Others keep their name."""
    layer: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The family's name -> the decoder's, several for a fused tensor, after `layers.N.`. Others keep their name."""
    stacked: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names after `layers.N.` of tensors [experts, rows, columns] that some writers store instead of one an expert ->
    the decoder's, expert after expert."""
    ignored_suffixes: tuple[str, ...] = ("rotary_emb.inv_freq",)
    """Buffers that some writers store and no loader needs."""

    def decoder_names(self, name: str) -> tuple[str, ...]:
        """The decoder's tensors that a checkpoint's tensor fills. A name that fits no pattern is returned as it is."""
        if name in self.heads:
            return ("lm_head.weight",)
        for prefix in sorted(self.body_prefixes, key=len, reverse=True):
            if name.startswith(prefix):
                name = name.removeprefix(prefix)
                break
        in_layer = re.fullmatch(rf"{re.escape(self.layers)}\.(\d+)\.(.+)", name)
        if in_layer is None:
            return (self.body.get(name, name),)
        number, own = in_layer.groups()
        found = self.stacked.get(own) or self.layer.get(own, (own,))
        return tuple(f"layers.{number}.{wanted}" for wanted in found)

    def adapter_names(self, name: str) -> tuple[str, ...]:
        """The tensors that a draft adapter's tensor fills. PEFT's wrapper and adapter name are left out."""
        name = name.removeprefix("base_model.model.")
        matched = re.fullmatch(r"(.+)\.lora_([AB])(?:\.\w+)?\.weight", name)
        if matched is None:
            return self.decoder_names(name)
        adapted, side = matched.groups()
        return tuple(
            f"{wanted.removesuffix('weight')}lora_{side}.weight" for wanted in self.decoder_names(f"{adapted}.weight")
        )

    def published_name(self, wanted: str) -> str:
        """The published name of the tensor that brings a decoder's tensor, for messages."""
        if wanted == "lm_head.weight":
            return self.heads[0]
        in_layer = re.fullmatch(r"layers\.(\d+)\.(.+)", wanted)
        if in_layer is None:
            own = next((own for own, known in self.body.items() if known == wanted), wanted)
            return self.body_prefixes[0] + own
        number, suffix = in_layer.groups()
        own = next((own for own, known in self.layer.items() if suffix in known), suffix)
        return f"{self.body_prefixes[0]}{self.layers}.{number}.{own}"

    def is_ignored(self, name: str) -> bool:
        """Whether no loader needs this tensor of a checkpoint."""
        return name.endswith(self.ignored_suffixes)


LLAMA_NAMES = WeightNames(body_prefixes=("model.",), heads=("lm_head.weight",))
"""The names that transformers gives a Llama, a Qwen2 and a Qwen3."""


def stacked_experts(count: int, published: str = "mlp.experts") -> dict[str, tuple[str, ...]]:
    """`WeightNames.stacked` for the names that transformers gives a layer's experts, stacked, after `published`."""
    parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
    return {
        f"{published}.{stacked}": tuple(f"mlp.experts.{n}.{part}.weight" for n in range(count) for part in own)
        for stacked, own in parts.items()
    }
