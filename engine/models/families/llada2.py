"""LLaDA2.0 and 2.1 (mini, flash): a decoder of experts whose context is encoded by blocks of 32 tokens.

Sources: the published checkpoints' config.json and tensor names, and the loops of the modeling files of LLaDA2.0 (arXiv
2512.15745) and 2.1 (arXiv 2602.08676). Their remote code is never run. config.json names neither the mask, which is the
tokenizer's `<|mask|>`, nor an end token, nor the block length, which is that of the published loops; and it is the same
for both, so that the operator has to say which of the two families a checkpoint is of, if it is to edit.
"""

from __future__ import annotations

from typing import Any

from engine.models.families.description import (
    ModelDescription,
    read_decoder_config,
    read_end_tokens,
    read_expert_counts,
)
from engine.models.families.names import WeightNames, stacked_experts
from engine.models.families.overrides import NO_OVERRIDES, Overrides, read_block_length, read_mask_token
from engine.models.files import ConfigFile
from engine.models.mlp.config import ExpertConfig
from engine.models.spec import ModelSpec
from engine.request import EditSetting

PUBLISHED_LENGTH = 32

END_TEXTS = ("<|endoftext|>", "<|role_end|>")
"""Each of them ends an answer."""

EDIT_SETTINGS = (
    EditSetting("quality", threshold=0.7, edit_threshold=0.5),
    EditSetting("speed", threshold=0.5, edit_threshold=0.0),
    EditSetting("off", threshold=0.95, edit_threshold=None),
)
"""Those that 2.1's authors call Q and S, and 2.0's loop."""

LAYER_NAMES = {
    "attention.query_key_value.weight": (
        "self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight",
    ),
    "attention.dense.weight": ("self_attn.o_proj.weight",),
    "attention.query_layernorm.weight": ("self_attn.q_norm.weight",),
    "attention.key_layernorm.weight": ("self_attn.k_norm.weight",),
    "mlp.gate.expert_bias": ("mlp.gate.bias",),
}  # fmt: skip

REQUIRED: dict[str, Any] = {"score_function": "sigmoid", "use_qk_norm": True}
"""What the published configs say, where a missing key would mean another architecture."""

NEUTRAL: dict[str, Any] = {"use_bias": False, "use_qkv_bias": False, "router_dtype": "fp32"}
"""What the published configs say, or leave out, which means the same."""


def describe_llada2(
    config: ConfigFile, generation: ConfigFile, overrides: Overrides = NO_OVERRIDES
) -> ModelDescription:
    """config.json and generation_config.json -> description of a 2.0, or of a 2.1 that does not edit. Raises
    ModelLoadError naming file and key of a bad value."""
    return _describe("llada2", config, generation, overrides, 0.95, ())


def describe_llada2_1(
    config: ConfigFile, generation: ConfigFile, overrides: Overrides = NO_OVERRIDES
) -> ModelDescription:
    """The same of a 2.1, which edits."""
    return _describe("llada2_1", config, generation, overrides, EDIT_SETTINGS[0].threshold, EDIT_SETTINGS)


def _describe(
    family: str,
    config: ConfigFile,
    generation: ConfigFile,
    overrides: Overrides,
    threshold: float,
    edit_settings: tuple[EditSetting, ...],
) -> ModelDescription:
    for key, value in (REQUIRED | NEUTRAL).items():
        if config.values.get(key, value if key in NEUTRAL else None) != value:
            raise config.error(key, f"{str(value).lower()}, as in LLaDA2: nothing else is supported")
    experts = _read_experts(config)
    decoder = read_decoder_config(config, qk_norm=True, experts=experts, partial_rotation=True, window_is_unused=True)
    ends = [read_end_tokens(config, generation, decoder.vocab_size, [text]) for text in END_TEXTS]
    spec = ModelSpec(
        family=family,
        mask_token_id=read_mask_token(config, decoder.vocab_size, overrides, ["<|mask|>"]),
        pad_token_id=config.token_id("pad_token_id", decoder.vocab_size),
        bos_token_id=config.token_id("bos_token_id", decoder.vocab_size),
        end_token_ids=tuple(dict.fromkeys(token for found in ends for token in found)),
        block_length=read_block_length(config, overrides, ["block_length", "block_size"], default=PUBLISHED_LENGTH),
        context_attention="block_causal",
        block_start="tail",
        has_causal_head=False,
        can_infill=False,
        default_threshold=threshold,
        edit_settings=edit_settings,
        strict_threshold=True,
        even_schedule="block",
    )
    names = WeightNames(
        body_prefixes=("model.",),
        heads=("lm_head.weight",),
        body={"word_embeddings.weight": "embed_tokens.weight"},
        layer=LAYER_NAMES,
        stacked=stacked_experts(experts.num_experts),
    )
    return ModelDescription(config=decoder, spec=spec, names=names)


def _read_experts(config: ConfigFile) -> ExpertConfig:
    """Sigmoids with a bias for the choice, groups, a factor, and MLPs that every token takes."""
    experts, per_token = read_expert_counts(config)
    groups, kept = config.integer("n_group"), config.integer("topk_group")
    # A group is ranked by its two best experts.
    if groups > 1 and (experts % groups or experts // groups < 2):
        raise config.error("n_group", f"a divisor of num_experts ({experts}), with two experts a group at least")
    if kept > groups or per_token > kept * (experts // groups):
        raise config.error("topk_group", f"at most n_group ({groups}), with room for {per_token} experts a token")
    inner = config.integer("moe_intermediate_size")
    return ExpertConfig(
        num_experts=experts,
        per_token=per_token,
        intermediate_size=inner,
        scoring="sigmoid",
        renormalised=config.flag("norm_topk_prob"),
        choice_bias=config.flag("moe_router_enable_expert_bias"),
        num_groups=groups,
        groups_kept=kept,
        scaling=config.number("routed_scaling_factor"),
        shared_size=inner * config.integer("num_shared_experts", minimum=0),
        num_dense_layers=config.integer("first_k_dense_replace", minimum=0),
    )
