"""SDAR: a Qwen3 or Qwen3-MoE decoder whose context is encoded by blocks of 4, 8, 16, 32 or 64 tokens; and I-DLM, which
names the same architecture and sees causally throughout.

Sources: JetLM's published checkpoints (config.json, tensor names) and SDAR's `generate.py`. The published config.json
names neither the mask, which is the tokenizer's `<|MASK|>`, nor the block length, which is told by the checkpoint's
name alone.
"""

from __future__ import annotations

from dataclasses import replace

from engine.errors import ModelLoadError
from engine.models.families.description import (
    ModelDescription,
    count_dense_layers,
    read_decoder_config,
    read_end_tokens,
    read_expert_counts,
)
from engine.models.families.names import LLAMA_NAMES, stacked_experts
from engine.models.families.overrides import NO_OVERRIDES, Overrides, read_block_length, read_mask_token
from engine.models.files import ConfigFile
from engine.models.mlp.config import ExpertConfig
from engine.models.spec import ModelSpec

TRAINED_LENGTHS = (4, 8, 16, 32, 64)
IDLM_LENGTH = 4
"""N of I-DLM's published recipe: an anchor and three drafts."""
WHICH_LENGTH = " (4 for SDAR-...-Chat, 8 for -b8, and so on)"


def describe_sdar(config: ConfigFile, generation: ConfigFile, overrides: Overrides = NO_OVERRIDES) -> ModelDescription:
    """config.json and generation_config.json -> description. Raises ModelLoadError naming file and key of a bad
    value."""
    return _describe("sdar", config, generation, overrides, None)


def describe_sdar_moe(
    config: ConfigFile, generation: ConfigFile, overrides: Overrides = NO_OVERRIDES
) -> ModelDescription:
    """The same of a checkpoint with experts."""
    return _describe("sdar_moe", config, generation, overrides, _read_experts(config))


def describe_idlm(config: ConfigFile, generation: ConfigFile, overrides: Overrides = NO_OVERRIDES) -> ModelDescription:
    """I-DLM (arXiv 2604.11035), and a Qwen3 that drafts with I-DLM's adapter. Nothing in config.json tells it from an
    SDAR, so the operator has to.

    The block length is N of the published recipe, a matter of speed alone: `block_size` in its config.json is another.
    """
    decoder = read_decoder_config(config, qk_norm=True)
    spec = ModelSpec(
        family="idlm",
        mask_token_id=read_mask_token(config, decoder.vocab_size, overrides, ["<|MASK|>"]),
        pad_token_id=config.token_id("pad_token_id", decoder.vocab_size),
        bos_token_id=config.token_id("bos_token_id", decoder.vocab_size),
        end_token_ids=read_end_tokens(config, generation, decoder.vocab_size),
        block_length=overrides.block_length or IDLM_LENGTH,
        drafts_causally=True,
        can_infill=False,
        default_threshold=None,
    )
    return ModelDescription(config=decoder, spec=spec, names=LLAMA_NAMES)


def _read_experts(config: ConfigFile) -> ExpertConfig:
    """Qwen3-MoE's keys: softmax over all experts, renormalised if config.json says so."""
    experts, per_token = read_expert_counts(config)
    if config.integer("decoder_sparse_step", default=1) != 1:
        raise config.error("decoder_sparse_step", "1: experts in every layer")
    return ExpertConfig(
        num_experts=experts,
        per_token=per_token,
        intermediate_size=config.integer("moe_intermediate_size"),
        scoring="softmax",
        renormalised=config.flag("norm_topk_prob"),
        num_dense_layers=count_dense_layers(config, "mlp_only_layers", config.values.get("mlp_only_layers") or []),
    )


def _describe(
    family: str, config: ConfigFile, generation: ConfigFile, overrides: Overrides, experts: ExpertConfig | None
) -> ModelDescription:
    decoder = read_decoder_config(config, qk_norm=True, experts=experts)
    block_length = read_block_length(config, overrides, ["block_size", "block_length"], hint=WHICH_LENGTH)
    if block_length not in TRAINED_LENGTHS and overrides.family is None:
        raise ModelLoadError(
            f"{config.path}: SDAR's checkpoints have blocks of {', '.join(map(str, TRAINED_LENGTHS))} tokens, not "
            f"{block_length}. Others name the same architecture; if this is SDAR, give --model-family {family}. "
            "I-DLM needs --model-family idlm."
        )
    spec = ModelSpec(
        family=family,
        mask_token_id=read_mask_token(config, decoder.vocab_size, overrides, ["<|MASK|>"]),
        pad_token_id=config.token_id("pad_token_id", decoder.vocab_size),
        bos_token_id=config.token_id("bos_token_id", decoder.vocab_size),
        end_token_ids=read_end_tokens(config, generation, decoder.vocab_size),
        block_length=block_length,
        context_attention="block_causal",
        block_start="tail",
        has_causal_head=False,
        can_infill=False,
        remaskings=("low_confidence", "sequential"),
        default_threshold=0.85,
        strict_threshold=True,
        even_schedule="block",
    )
    names = LLAMA_NAMES
    if experts is not None:
        names = replace(names, stacked=stacked_experts(experts.num_experts))
    return ModelDescription(config=decoder, spec=spec, names=names)
