"""Random checkpoints in the published Nemotron-Labs-Diffusion layout, tiny enough for any test.

The default shape has everything that can go wrong at full size: grouped query heads, a head size that is not
hidden / heads, an untied head, YaRN and Llama-4 query scaling that are active after 16 positions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

PAD, BOS, EOS, MASK = 0, 1, 2, 5

Tensors = dict[str, torch.Tensor]


def tiny_config(**overrides: Any) -> dict[str, Any]:
    """A config.json of the published layout with `overrides` on top; an override of None removes the key."""
    config: dict[str, Any] = {
        "architectures": ["NemotronLabsDiffusionModel"],
        "model_type": "nemotron_labs_diffusion",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 32.0,
            "original_max_position_embeddings": 16,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
        "block_size": 8,
        "mask_token_id": MASK,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "dtype": "float32",
    }
    config.update(overrides)
    return {key: value for key, value in config.items() if value is not None}


def random_tensors(config: dict[str, Any], *, seed: int = 0, logit_scale: float = 4.0) -> Tensors:
    """Float32 weights under the published names. Activations stay near 1; logits have a deviation of `logit_scale`,
    so that greedy choices are clear-cut and diffusion confidences spread over (0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head_dim = config["head_dim"]
    q_dim, kv_dim = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim

    def matrix(rows: int, columns: int, scale: float = 1.0) -> torch.Tensor:
        deviation: float = scale * columns**-0.5
        return torch.randn(rows, columns, generator=generator) * deviation

    def gain() -> torch.Tensor:
        return 1.0 + 0.1 * torch.randn(hidden, generator=generator)

    tensors = {
        "encoder.embed_tokens.weight": torch.randn(vocab, hidden, generator=generator),
        "encoder.norm.weight": gain(),
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"encoder.layers.{layer}."
        tensors |= {
            prefix + "input_layernorm.weight": gain(),
            prefix + "post_attention_layernorm.weight": gain(),
            prefix + "self_attn.q_proj.weight": matrix(q_dim, hidden),
            prefix + "self_attn.k_proj.weight": matrix(kv_dim, hidden),
            prefix + "self_attn.v_proj.weight": matrix(kv_dim, hidden),
            prefix + "self_attn.o_proj.weight": matrix(hidden, q_dim),
            prefix + "mlp.gate_proj.weight": matrix(inner, hidden),
            prefix + "mlp.up_proj.weight": matrix(inner, hidden),
            prefix + "mlp.down_proj.weight": matrix(hidden, inner),
        }
    if not config["tie_word_embeddings"]:
        tensors["diffusion_head.weight"] = matrix(vocab, hidden, logit_scale)
    return tensors


def random_adapter(config: dict[str, Any], *, rank: int = 4, seed: int = 1) -> Tensors:
    """A draft LoRA on every o_proj, under PEFT's names."""
    generator = torch.Generator().manual_seed(seed)
    hidden, q_dim = config["hidden_size"], config["num_attention_heads"] * config["head_dim"]
    tensors: Tensors = {}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"base_model.model.encoder.layers.{layer}.self_attn.o_proj."
        tensors[prefix + "lora_A.weight"] = torch.randn(rank, q_dim, generator=generator) * q_dim**-0.5
        tensors[prefix + "lora_B.weight"] = torch.randn(hidden, rank, generator=generator) * rank**-0.5
    return tensors


def write_checkpoint(
    directory: Path,
    *,
    seed: int = 0,
    logit_scale: float = 4.0,
    dtype: torch.dtype = torch.float32,
    shards: int = 1,
    generation_config: dict[str, Any] | None = None,
    lora_rank: int | None = None,
    lora_alpha: int = 8,
    **overrides: Any,
) -> Path:
    """Writes config.json, generation_config.json and weights (`shards` > 1: with an index) and returns `directory`.

    `overrides` go to `tiny_config`. `lora_rank` adds a draft adapter under `linear_spec_lora/`.
    """
    config = tiny_config(**overrides)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    generation = generation_config if generation_config is not None else {"eos_token_id": EOS}
    (directory / "generation_config.json").write_text(json.dumps(generation))
    tensors = random_tensors(config, seed=seed, logit_scale=logit_scale)
    write_weights(directory, {name: tensor.to(dtype) for name, tensor in tensors.items()}, shards)
    if lora_rank is not None:
        adapter = directory / "linear_spec_lora"
        adapter.mkdir(exist_ok=True)
        settings = {"peft_type": "LORA", "r": lora_rank, "lora_alpha": lora_alpha, "target_modules": ["o_proj"]}
        (adapter / "adapter_config.json").write_text(json.dumps(settings))
        save_file(random_adapter(config, rank=lora_rank), adapter / "adapter_model.safetensors")
    return directory


def write_weights(directory: Path, tensors: Tensors, shards: int = 1) -> None:
    """One model.safetensors, or `shards` files and model.safetensors.index.json."""
    if shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        filename = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        save_file(part, directory / filename, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, filename)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
