"""Random checkpoints in the published layouts of families whose context is encoded by blocks, tiny enough for tests.

Names and shapes of the tensors are those of transformers' own module of each backbone, as in the published files; the
configs have the published keys and, like the published ones, lack what those lack.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.reference.checkpoints import BOS, EOS, MASK, PAD, Tensors
from tests.reference.mixtures.names import published
from tests.reference.mixtures.own_dtype import keep_dtype

VOCABULARY = 96

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "silu", "rms_norm_eps": 1e-6,
    "max_position_embeddings": 512, "rope_theta": 10000.0, "rope_scaling": None, "bos_token_id": BOS,
    "eos_token_id": EOS, "pad_token_id": PAD, "torch_dtype": "float32", "initializer_range": 0.02, "use_cache": True,
    "attention_dropout": 0.0,
}  # fmt: skip

FAMILIES: dict[str, dict[str, Any]] = {
    "sdar": {
        "architectures": ["SDARForCausalLM"], "model_type": "sdar", "head_dim": 16, "attention_bias": False,
        "tie_word_embeddings": False, "use_sliding_window": False, "sliding_window": None, "max_window_layers": 2,
        "block_size": 4,
    },
    "stable_diffcoder": {
        "architectures": ["StableDiffcoderForCausalLM"], "model_type": "llama", "head_dim": 8, "attention_bias": False,
        "mlp_bias": False, "tie_word_embeddings": False, "resid_pdrop": 0.1,
    },
    "fast_dllm_v2": {
        "architectures": ["Fast_dLLM_QwenForCausalLM"], "model_type": "Fast_dLLM_Qwen", "bd_size": 32,
        "conplemenrary_mask": True, "layer_types": ["full_attention"] * 2, "use_sliding_window": False,
        "sliding_window": 128, "max_window_layers": 2, "tie_word_embeddings": True,
    },
    "sdar_moe": {
        "architectures": ["SDARMoeForCausalLM"], "model_type": "sdar_moe", "head_dim": 16, "attention_bias": False,
        "tie_word_embeddings": False, "use_sliding_window": False, "sliding_window": None, "max_window_layers": 2,
        "num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 24, "norm_topk_prob": True,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "block_size": 4,
    },
    "llada2": {
        "architectures": ["LLaDA2MoeModelLM"], "model_type": "llada2_moe", "head_dim": 16, "num_hidden_layers": 3,
        "moe_intermediate_size": 24, "num_experts": 16, "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2,
        "num_shared_experts": 1, "first_k_dense_replace": 1, "routed_scaling_factor": 2.5,
        "score_function": "sigmoid", "moe_router_enable_expert_bias": True, "norm_topk_prob": True,
        "router_dtype": "fp32", "partial_rotary_factor": 0.5, "rotary_dim": 8, "sliding_window": 4096,
        "use_qk_norm": True, "use_bias": False, "use_qkv_bias": False, "tie_word_embeddings": False,
        "eos_token_id": ..., "bos_token_id": ...,
    },
}  # fmt: skip
"""config.json by family, beside SHAPE."""

BACKBONES = {"sdar": "Qwen3", "stable_diffcoder": "Llama", "fast_dllm_v2": "Qwen2"}
"""transformers' name of each family's backbone."""

MIXTURES = {"sdar_moe": "Qwen3Moe", "llada2": "Glm4Moe"}
"""The same of those with experts."""

MASK_TEXTS = {
    "sdar": "<|MASK|>", "stable_diffcoder": "<[MASK_TOKEN]>", "fast_dllm_v2": "|<MASK>|",
    "sdar_moe": "<|MASK|>", "llada2": "<|mask|>",
}  # fmt: skip


def block_config(family: str, **overrides: Any) -> dict[str, Any]:
    """A config.json of the published layout with `overrides` on top; an override of `...` removes the key."""
    config = {**SHAPE, **FAMILIES[family], **overrides}
    return {key: value for key, value in config.items() if value is not ...}


def backbone(family: str, config: dict[str, Any], dtype: torch.dtype) -> Any:
    """transformers' module of a config, untrained. Its norms keep to its dtype."""
    import transformers

    name = (BACKBONES | MIXTURES)[family]
    keys = set(SHAPE) - {"torch_dtype", "eos_token_id", "bos_token_id", "pad_token_id", "rope_scaling"}
    shape = {key: config[key] for key in (*keys, "head_dim", "tie_word_embeddings") if key in config}
    if family == "sdar_moe":
        experts = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob", "mlp_only_layers")
        shape |= {key: config[key] for key in experts}
    elif family == "llada2":
        shape |= _glm4_moe_shape(config)
    made = getattr(transformers, f"{name}Config")(**shape)
    made._attn_implementation = "sdpa"
    made._experts_implementation = "eager"  # a loop over experts
    model = getattr(transformers, f"{name}ForCausalLM")(made).eval().to(dtype)
    keep_dtype(model)
    return model


def _glm4_moe_shape(config: dict[str, Any]) -> dict[str, Any]:
    """LLaDA2's experts and rotation under GLM-4-MoE's keys."""
    same = (
        "moe_intermediate_size", "num_experts_per_tok", "routed_scaling_factor", "n_group", "topk_group",
        "first_k_dense_replace", "norm_topk_prob", "use_qk_norm",
    )  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    return {
        **{key: config[key] for key in same},
        "n_routed_experts": config["num_experts"],
        "n_shared_experts": config["num_shared_experts"],
        "rope_parameters": rope | {"partial_rotary_factor": config["partial_rotary_factor"]},
    }


def random_block_tensors(family: str, config: dict[str, Any], *, seed: int = 0, logit_scale: float = 4.0) -> Tensors:
    """Float32 weights under the published names. Logits have a deviation of about `logit_scale`, so that greedy choices
    are clear-cut and confidences spread over (0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}
    for name, like in backbone(family, config, torch.float32).state_dict().items():
        noise = torch.randn(like.shape, generator=generator)
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        if name.endswith("norm.weight"):
            tensors[name] = 1.0 + 0.1 * noise
        elif name.endswith("bias"):
            tensors[name] = 0.3 * noise
        elif name == "model.embed_tokens.weight":
            tensors[name] = noise * (logit_scale * like.shape[1] ** -0.5 if config["tie_word_embeddings"] else 1.0)
        else:
            tensors[name] = noise * like.shape[-1] ** -0.5 * (logit_scale if name == "lm_head.weight" else 1.0)
    return published(tensors, llada2=family == "llada2") if family in MIXTURES else tensors


def write_block_checkpoint(
    directory: Path, family: str, *, seed: int = 0, logit_scale: float = 4.0, mask: bool = True, **overrides: Any
) -> Path:
    """Writes config.json, generation_config.json, the tokenizer's list of added tokens and the weights.

    mask: whether the tokenizer names the family's mask token. overrides: of config.json, see `block_config`.
    """
    config = block_config(family, **overrides)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS]}))
    added = [{"id": EOS, "content": "<|end|>"}]
    if mask:
        added.append({"id": MASK, "content": MASK_TEXTS[family]})
    (directory / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    tensors = random_block_tensors(family, config, seed=seed, logit_scale=logit_scale)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory
