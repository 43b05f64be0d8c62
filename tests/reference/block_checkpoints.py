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
}  # fmt: skip
"""config.json by family, beside SHAPE."""

BACKBONES = {"sdar": "Qwen3", "stable_diffcoder": "Llama", "fast_dllm_v2": "Qwen2"}
"""transformers' name of each family's backbone."""

MASK_TEXTS = {"sdar": "<|MASK|>", "stable_diffcoder": "<[MASK_TOKEN]>", "fast_dllm_v2": "|<MASK>|"}


def block_config(family: str, **overrides: Any) -> dict[str, Any]:
    """A config.json of the published layout with `overrides` on top; an override of `...` removes the key."""
    config = {**SHAPE, **FAMILIES[family], **overrides}
    return {key: value for key, value in config.items() if value is not ...}


def backbone(family: str, config: dict[str, Any], dtype: torch.dtype) -> Any:
    """transformers' module of a config, untrained. Its norms keep to its dtype."""
    import transformers

    name = BACKBONES[family]
    keys = set(SHAPE) - {"torch_dtype", "eos_token_id", "bos_token_id", "pad_token_id", "rope_scaling"}
    shape = {key: config[key] for key in (*keys, "head_dim", "tie_word_embeddings") if key in config}
    made = getattr(transformers, f"{name}Config")(**shape)
    made._attn_implementation = "sdpa"
    model = getattr(transformers, f"{name}ForCausalLM")(made).eval().to(dtype)
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = _Norm(module)
    return model


class _Norm:
    """RMSNorm without transformers' detour over float32."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.module.variance_epsilon)
        normed: torch.Tensor = self.module.weight * (hidden * scale)
        return normed


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
            tensors[name] = noise * like.shape[1] ** -0.5 * (logit_scale if name == "lm_head.weight" else 1.0)
    return tensors


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
