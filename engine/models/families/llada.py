"""LLaDA 8B (Base, Instruct, 1.5) and LLaDA-MoE 7B-A1B: decoders that see the whole text in every pass.

The first is a Llama under OLMo's names, the second a Qwen3-MoE whose router does not renormalise.

Source: the published checkpoints' config.json, tensor names and generate.py (arXiv 2502.09992). Their remote code is
never run.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from engine.models.families.description import (
    ConfigKeys,
    ModelDescription,
    count_dense_layers,
    read_decoder_config,
    read_end_tokens,
    read_expert_counts,
)
from engine.models.families.names import LLAMA_NAMES, WeightNames, stacked_experts
from engine.models.families.overrides import NO_OVERRIDES, Overrides, read_mask_token
from engine.models.files import ConfigFile
from engine.models.mlp.config import ExpertConfig
from engine.models.spec import ModelSpec

KEYS = ConfigKeys(
    hidden_size="d_model",
    intermediate_size="mlp_hidden_size",
    num_layers="n_layers",
    num_heads="n_heads",
    num_kv_heads="n_kv_heads",
    max_positions="max_sequence_length",
    tied_head="weight_tying",
)

# The head and the layers' down projections are both called ff_out.
NAMES = WeightNames(
    body_prefixes=("model.transformer.",),
    heads=("model.transformer.ff_out.weight",),
    layers="blocks",
    body={"wte.weight": "embed_tokens.weight", "ln_f.weight": "norm.weight"},
    layer={
        "attn_norm.weight": ("input_layernorm.weight",),
        "ff_norm.weight": ("post_attention_layernorm.weight",),
        "q_proj.weight": ("self_attn.q_proj.weight",),
        "k_proj.weight": ("self_attn.k_proj.weight",),
        "v_proj.weight": ("self_attn.v_proj.weight",),
        "attn_out.weight": ("self_attn.o_proj.weight",),
        "ff_proj.weight": ("mlp.gate_proj.weight",),
        "up_proj.weight": ("mlp.up_proj.weight",),
        "ff_out.weight": ("mlp.down_proj.weight",),
    },
)

REQUIRED: dict[str, Any] = {
    "block_type": "llama", "activation_type": "silu", "layer_norm_type": "rms", "rope": True, "include_bias": False,
    "weight_tying": False,
}  # fmt: skip
"""What the published configs say, where a missing key would mean another architecture."""

NEUTRAL: dict[str, Any] = {
    "include_qkv_bias": False, "attention_layer_norm": False, "input_emb_norm": False, "scale_logits": False,
    "alibi": False, "multi_query_attention": False, "block_group_size": 1, "rope_full_precision": True,
    "clip_qkv": None, "num_experts": None,
}  # fmt: skip
"""What the published configs say, or leave out, which means the same."""

MOE_KEYS = ConfigKeys(intermediate_size="dense_intermediate_size")

MOE_NEUTRAL: dict[str, Any] = {
    "clip_qkv": None, "shared_expert_intermediate_size": None, "moe_router_enable_expert_bias": False,
    "moe_router_score_function": "softmax",
}  # fmt: skip
"""What LLaDA-MoE's configs say, or leave out, which means the same."""

BLOCK_LENGTH = 32
"""generate.py's own call has blocks of 32."""


def describe_llada(config: ConfigFile, generation: ConfigFile, overrides: Overrides = NO_OVERRIDES) -> ModelDescription:
    """config.json and generation_config.json -> description. Raises ModelLoadError naming file and key of a bad
    value."""
    if config.values.get("expert_intermediate_size") is not None:
        return describe_llada_moe(config, generation, overrides)
    _refuse_others(config, REQUIRED, NEUTRAL, "LLaDA 8B")
    decoder = read_decoder_config(config, KEYS)
    size = decoder.vocab_size
    if config.integer("embedding_size", default=size) != size:
        raise config.error("embedding_size", f"vocab_size ({size})")
    spec = _spec("llada", config, generation, overrides, size, "<|mdm_mask|>", ["<|eot_id|>"])
    return ModelDescription(config=decoder, spec=spec, names=NAMES, keys=KEYS)


def describe_llada_moe(
    config: ConfigFile, generation: ConfigFile, overrides: Overrides = NO_OVERRIDES
) -> ModelDescription:
    """The same of LLaDA-MoE. Its weights are the softmax over all experts as it is, whatever `norm_topk_prob` says."""
    _refuse_others(config, {}, MOE_NEUTRAL, "LLaDA-MoE")
    experts, per_token = read_expert_counts(config)
    layers = config.values.get("moe_layer_freq")
    if layers is not None and (not isinstance(layers, list) or len(layers) != config.integer("num_hidden_layers")):
        raise config.error("moe_layer_freq", "a list with an entry a layer")
    dense = [index for index, mixed in enumerate(layers or ()) if not mixed]
    mixture = ExpertConfig(
        num_experts=experts,
        per_token=per_token,
        intermediate_size=config.integer("expert_intermediate_size"),
        scoring="softmax",
        renormalised=False,
        num_dense_layers=count_dense_layers(config, "moe_layer_freq", dense),
    )
    decoder = read_decoder_config(
        config, MOE_KEYS, qk_norm=config.flag("qk_layernorm"), experts=mixture, partial_rotation=True
    )
    spec = _spec("llada_moe", config, generation, overrides, decoder.vocab_size, "<|mask|>", ["<|role_end|>"])
    names = replace(LLAMA_NAMES, stacked=stacked_experts(experts))
    return ModelDescription(config=decoder, spec=spec, names=names, keys=MOE_KEYS)


def _spec(
    family: str,
    config: ConfigFile,
    generation: ConfigFile,
    overrides: Overrides,
    size: int,
    mask: str,
    turn_ends: list[str],
) -> ModelSpec:
    """The traits that both share. size: of the vocabulary; mask: the tokenizer's mask; turn_ends: of a chat."""
    return ModelSpec(
        family=family,
        mask_token_id=read_mask_token(config, size, overrides, (mask,)),
        pad_token_id=config.token_id("pad_token_id", size),
        bos_token_id=config.token_id("bos_token_id", size) or generation.token_id("bos_token_id", size),
        end_token_ids=read_end_tokens(config, generation, size, turn_ends),
        block_length=overrides.block_length or BLOCK_LENGTH,
        context_attention="bidirectional",
        block_start="mask",
        has_causal_head=False,
        remaskings=("low_confidence", "random"),
        default_threshold=None,
    )


def _refuse_others(config: ConfigFile, required: dict[str, Any], neutral: dict[str, Any], model: str) -> None:
    """Raises ModelLoadError where a key says that this is another architecture: its weights would load as noise."""
    for key, value in (required | neutral).items():
        found = config.values.get(key)
        if found is None and key in neutral:
            continue
        if found != value or isinstance(found, bool) is not isinstance(value, bool):
            expected = "unset" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
            raise config.error(key, f"{expected}, as in {model}: nothing else is supported")
