"""Random checkpoints in the published layouts of LLaDA, LLaDA-MoE and Dream, on transformers' own modules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from tests.reference.checkpoints import write_weights
from tests.reference.mixtures.names import published
from tests.reference.mixtures.own_dtype import keep_dtype

BOS, EOS, MASK, END_OF_TURN = 1, 2, 5, 3
LLADA_NAMES = {
    "self_attn.q_proj.weight": "q_proj.weight", "self_attn.k_proj.weight": "k_proj.weight",
    "self_attn.v_proj.weight": "v_proj.weight", "self_attn.o_proj.weight": "attn_out.weight",
    "input_layernorm.weight": "attn_norm.weight", "post_attention_layernorm.weight": "ff_norm.weight",
    "mlp.gate_proj.weight": "ff_proj.weight", "mlp.up_proj.weight": "up_proj.weight",
    "mlp.down_proj.weight": "ff_out.weight",
}  # fmt: skip
"""Llama's names within a layer -> LLaDA's."""
LLADA_TOP = {
    "model.embed_tokens.weight": "model.transformer.wte.weight", "model.norm.weight": "model.transformer.ln_f.weight",
    "lm_head.weight": "model.transformer.ff_out.weight",
}  # fmt: skip


def llada_config(**overrides: Any) -> dict[str, Any]:
    """A config.json with the published keys of LLaDA-8B, tiny; an override of None removes the key."""
    config: dict[str, Any] = {
        "architectures": ["LLaDAModelLM"], "model_type": "llada", "d_model": 32, "n_heads": 2, "n_kv_heads": 2,
        "n_layers": 2, "mlp_hidden_size": 48, "mlp_ratio": 4, "vocab_size": 96, "embedding_size": 96,
        "max_sequence_length": 512, "rms_norm_eps": 1e-5, "rope": True, "rope_full_precision": True,
        "rope_theta": 500000.0, "block_type": "llama", "activation_type": "silu", "layer_norm_type": "rms",
        "include_bias": False, "include_qkv_bias": False, "attention_layer_norm": False, "weight_tying": False,
        "input_emb_norm": False, "scale_logits": False, "alibi": False, "block_group_size": 1,
        "multi_query_attention": None, "mask_token_id": MASK, "eos_token_id": EOS, "pad_token_id": EOS,
    }  # fmt: skip
    return {key: value for key, value in (config | overrides).items() if value is not None}


def dream_config(**overrides: Any) -> dict[str, Any]:
    """A config.json with the published keys of Dream-7B, tiny; an override of None removes the key."""
    config: dict[str, Any] = {
        "architectures": ["DreamModel"], "model_type": "Dream", "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "silu",
        "vocab_size": 96, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "rope_scaling": None,
        "max_position_embeddings": 512, "max_window_layers": 2, "sliding_window": None, "use_sliding_window": False,
        "tie_word_embeddings": False, "mask_token_id": MASK, "bos_token_id": EOS, "eos_token_id": EOS,
        "pad_token_id": EOS,
    }  # fmt: skip
    return {key: value for key, value in (config | overrides).items() if value is not None}


def llada_moe_config(**overrides: Any) -> dict[str, Any]:
    """A config.json with the published keys of LLaDA-MoE-7B-A1B, tiny; an override of None removes the key."""
    config: dict[str, Any] = {
        "architectures": ["LLaDAMoEModelLM"], "model_type": "llada", "hidden_size": 32, "num_hidden_layers": 3,
        "num_attention_heads": 2, "num_key_value_heads": 2, "hidden_act": "silu", "vocab_size": 96,
        "rms_norm_eps": 1e-5, "rope_theta": 50000.0, "max_position_embeddings": 512, "num_experts": 16,
        "num_experts_per_tok": 4, "expert_intermediate_size": 24, "dense_intermediate_size": 48,
        "moe_layer_freq": [0, 1, 1], "qk_layernorm": True, "moe_router_enable_expert_bias": False,
        "moe_router_score_function": "softmax", "partial_rotary_factor": 1, "norm_topk_prob": True,
        "tie_word_embeddings": False, "mask_token_id": MASK, "eos_token_id": EOS, "pad_token_id": EOS,
    }  # fmt: skip
    return {key: value for key, value in (config | overrides).items() if value is not None}


def qwen3_moe_module(config: dict[str, Any]) -> Qwen3MoeForCausalLM:
    """transformers' module of LLaDA-MoE's shape. It never renormalises, whatever the config says."""
    same = (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "rms_norm_eps",
        "max_position_embeddings", "tie_word_embeddings", "num_experts", "num_experts_per_tok",
    )  # fmt: skip
    shape = Qwen3MoeConfig(
        **{key: config[key] for key in same}, pad_token_id=None, use_sliding_window=False, norm_topk_prob=False,
        intermediate_size=config["dense_intermediate_size"], moe_intermediate_size=config["expert_intermediate_size"],
        mlp_only_layers=[index for index, mixed in enumerate(config["moe_layer_freq"]) if not mixed],
        rope_parameters={"rope_type": "default", "rope_theta": config["rope_theta"]},
        head_dim=config["hidden_size"] // config["num_attention_heads"],
    )  # fmt: skip
    shape._attn_implementation = "sdpa"
    shape._experts_implementation = "eager"  # a loop over experts
    model = Qwen3MoeForCausalLM(shape).eval()
    keep_dtype(model)
    return model


def module_of(config: dict[str, Any]) -> LlamaForCausalLM | Qwen2ForCausalLM | Qwen3MoeForCausalLM:
    """transformers' module of a config's shape, with its own random weights."""
    if config["architectures"] == ["LLaDAMoEModelLM"]:
        return qwen3_moe_module(config)
    if config["architectures"] == ["LLaDAModelLM"]:
        shape = LlamaConfig(
            vocab_size=config["vocab_size"], hidden_size=config["d_model"], intermediate_size=config["mlp_hidden_size"],
            num_hidden_layers=config["n_layers"], num_attention_heads=config["n_heads"],
            num_key_value_heads=config["n_kv_heads"], rms_norm_eps=config["rms_norm_eps"],
            max_position_embeddings=config["max_sequence_length"], tie_word_embeddings=False, pad_token_id=None,
            rope_parameters={"rope_type": "default", "rope_theta": config["rope_theta"]},
        )  # fmt: skip
        kind: Any = LlamaForCausalLM
    else:
        same = (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings",
        )  # fmt: skip
        shape = Qwen2Config(
            **{key: config[key] for key in same}, pad_token_id=None, use_sliding_window=False,
            rope_parameters={"rope_type": "default", "rope_theta": config["rope_theta"]},
        )  # fmt: skip
        kind = Qwen2ForCausalLM
    shape._attn_implementation = "sdpa"
    return kind(shape).eval()


def published_names(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The module's tensors under the names of the published layout."""
    if config["architectures"] == ["LLaDAMoEModelLM"]:
        return published(tensors)
    if config["architectures"] != ["LLaDAModelLM"]:
        return tensors  # Dream's are Qwen2's own
    named = {}
    for name, tensor in tensors.items():
        if name in LLADA_TOP:
            named[LLADA_TOP[name]] = tensor
        else:
            _, _, layer, rest = name.split(".", 3)
            named[f"model.transformer.blocks.{layer}.{LLADA_NAMES[rest]}"] = tensor
    return named


def write_whole_checkpoint(
    directory: Path, config: dict[str, Any], *, seed: int = 0, logit_scale: float = 4.0, shards: int = 1,
    generation: dict[str, Any] | None = None,
) -> Path:  # fmt: skip
    """A random checkpoint in the published layout. Logits have a deviation of `logit_scale`.

    Attention weighs more than in a plain random model: what a token sees, and what was cached of it, shows in answers.
    """
    generator = torch.Generator().manual_seed(seed)
    module, tensors = module_of(config), {}
    for name, parameter in module.state_dict().items():
        drawn = torch.randn(parameter.shape, generator=generator)
        if name.endswith("norm.weight"):
            tensors[name] = 1 + 0.1 * drawn
        elif name == "model.embed_tokens.weight":
            tensors[name] = drawn
        elif name.endswith("bias"):
            tensors[name] = 0.5 * drawn
        else:
            scale = logit_scale if name == "lm_head.weight" else 3.0 if "o_proj" in name else 1.5
            tensors[name] = scale * parameter.shape[-1] ** -0.5 * drawn
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    (directory / "generation_config.json").write_text(json.dumps(generation or {"eos_token_id": EOS}))
    write_weights(directory, published_names(config, tensors), shards)
    return directory
