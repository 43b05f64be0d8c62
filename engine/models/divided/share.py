"""A rank's share of a decoder: its smaller shape, and which part of every tensor of a checkpoint it holds.

q, k, v, gate and up are cut by rows, o and down by columns, embedding and head by rows of the vocabulary. Experts are
dealt out whole. Norms and routers are on every rank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from engine.errors import ModelLoadError
from engine.models.decoder_config import DecoderConfig
from engine.models.divided.linears import CutTarget
from engine.models.linear.base import Target
from engine.models.mlp.config import ExpertConfig
from engine.ranks.group import RankGroup

ROWS, COLUMNS = 0, 1

CUTS = {
    r"(embed_tokens|lm_head)\.weight": ROWS,
    r"self_attn\.[qkv]_proj\.(bias|(lora_B\.)?weight)": ROWS,
    r"mlp\.(shared_experts\.)?(gate|up)_proj\.(lora_B\.)?weight": ROWS,
    r"self_attn\.o_proj\.(lora_A\.)?weight": COLUMNS,
    r"mlp\.(shared_experts\.)?down_proj\.(lora_A\.)?weight": COLUMNS,
}
"""The dimension by which a tensor is cut, by a pattern of the decoder's name after `layers.N.`. Others are whole."""


def share_of(config: DecoderConfig, group: RankGroup) -> DecoderConfig:
    """The shape of a rank's decoder. Raises ModelLoadError for a number of ranks that does not divide the model."""
    size = group.size
    if size == 1:
        return config
    check_divisible(config, size)
    return replace(
        config,
        vocab_size=config.vocab_size // size,
        num_heads=config.num_heads // size,
        num_kv_heads=len(group.part(config.num_kv_heads)),
        intermediate_size=config.intermediate_size // size if _has_dense_layers(config) else config.intermediate_size,
        experts=None if config.experts is None else _share_of_experts(config.experts, group),
    )


def _share_of_experts(experts: ExpertConfig, group: RankGroup) -> ExpertConfig:
    return replace(experts, held=group.part(experts.num_experts), shared_size=experts.shared_size // group.size)


def _has_dense_layers(config: DecoderConfig) -> bool:
    return config.experts is None or config.experts.num_dense_layers > 0


def check_divisible(config: DecoderConfig, size: int) -> None:
    """Raises ModelLoadError, one line with the numbers, where so many ranks cannot share a model evenly."""
    counts = {"query heads": config.num_heads, "tokens of the vocabulary": config.vocab_size}
    if _has_dense_layers(config):
        counts["inner size of its MLPs"] = config.intermediate_size
    if config.experts is not None:
        counts["experts"] = config.experts.num_experts
        counts["inner size of its shared experts"] = config.experts.shared_size
    for what, count in counts.items():
        if count % size:
            raise ModelLoadError(f"tensor_parallel_size {size} does not divide the model's {_counted(what, count)}.")
    heads = config.num_kv_heads
    if heads % size and size % heads:
        raise ModelLoadError(
            f"tensor_parallel_size {size} neither divides the model's {heads} KV heads nor is a multiple of them."
        )


def _counted(what: str, count: int) -> str:
    return f"{what} ({count})" if "size" in what else f"{count} {what}"


def cut_targets(targets: Mapping[str, Target], config: DecoderConfig, group: RankGroup) -> dict[str, Target]:
    """The targets of a share as those of the whole model: each takes its part of a whole tensor.

    targets: by the decoder's names; config: of the whole model.
    """
    return {name: _cut(name, target, config, group) for name, target in targets.items()}


def _cut(name: str, target: Target, config: DecoderConfig, group: RankGroup) -> Target:
    own = re.sub(r"^layers\.\d+\.", "", name)
    for pattern, dimension in CUTS.items():
        if re.fullmatch(pattern, own):
            length = target.shape[dimension]
            if re.match(r"self_attn\.[kv]_proj", own):
                # Several ranks hold the same head where there are fewer heads than ranks.
                heads = group.part(config.num_kv_heads)
                return CutTarget(target, dimension, heads.start * config.head_dim, config.kv_dim)
            return CutTarget(target, dimension, group.rank * length, group.size * length)
    return target
